"""Evidence about a homework that was handed in; a person decides.

`handed_in` copies a repository without running anything of it, `history` reads who wrote what.
`people`, `text`, `numbers`, `tampering`, `stored`, `running`, `executed`, `length` and `similarity`
hold a function for each flag: what was handed in -> `Answer`. `reviewing` calls them all, `page`
shows a review, `cohort` many.
"""

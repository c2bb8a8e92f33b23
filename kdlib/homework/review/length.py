"""The flag about the length of the report, which its engine counts."""

from __future__ import annotations

import re

from kdlib.homework import building, checks, generated, report, untrusted
from kdlib.homework.building import Built
from kdlib.homework.review.clock import NOT_RUN, Clock
from kdlib.homework.review.findings import GREEN, NOTE, RED, Answer, Finding
from kdlib.homework.review.handed_in import HandedIn


def page_limit(handed_in: HandedIn, clock: Clock) -> Answer:
    """The length of the body, as the engine counts it; without a run, that of the stored PDF."""
    if handed_in.main is None:
        return Answer.note("page_limit", "there is no text of a report that could be built")
    if not clock.run:
        return _stored_pages(handed_in)
    where = handed_in.relative(handed_in.main)
    try:
        if handed_in.report and not (handed_in.folder / generated.JSON).is_file():
            report.make(handed_in.report)  # the team did not commit it; the engine needs it
        built = untrusted.build_report(handed_in.folder, handed_in.main.name, trust=clock.trust)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        return Answer((Finding("page_limit", NOTE, f"the pages are not counted: {error}", where),))
    if built.pdf is None:
        return Answer((_unbuilt(handed_in, built, where),))
    most = handed_in.course.rules.pages
    if built.body is None:  # not the kit's layout
        evidence = f"{built.pages} pages in all; where the text ends is not marked; at most {most}"
        severity = GREEN if built.pages <= most else NOTE
        return Answer((Finding("page_limit", severity, evidence, where),))
    wrong = tuple(checks.of_pages(built.body, handed_in.course))
    if wrong:
        return Answer((Finding("page_limit", RED, wrong[0], where),))
    evidence = f"the text ends on page {built.body} of at most {most}; {built.pages} pages in all"
    return Answer((Finding("page_limit", GREEN, evidence, where),))


def _unbuilt(handed_in: HandedIn, built: Built, where: str) -> Finding:
    """Red, unless another flag names the place: an unknown key or citation stops the engine."""
    told: list[str] = []
    if handed_in.source is not None and handed_in.report is not None:
        found = handed_in.report.results
        told += checks.unknown(handed_in.source, found)
        told += checks.uncited(handed_in.source, handed_in.bibliography)
        told += checks.structure(handed_in.source)
    place = re.match(r"[^\s:]+:\d+:", built.problem)
    known = place is not None and any(line.startswith(place[0]) for line in told)
    severity = NOTE if known or handed_in.report is None else RED
    return Finding("page_limit", severity, f"the report does not build: {built.problem}", where)


def _stored_pages(handed_in: HandedIn) -> Answer:
    path, most = handed_in.folder / building.PDF, handed_in.course.rules.pages
    if not path.is_file():
        return Answer.note("page_limit", f"{NOT_RUN}, and no {building.PDF} is stored")
    try:
        count = building.pages(path.read_bytes())
    except Exception as error:  # of a file that claims to be a PDF
        return Answer.note("page_limit", f"{building.PDF} cannot be read: {type(error).__name__}")
    where = handed_in.relative(path)
    if count <= most:
        evidence = f"{building.PDF} has {count} pages, references included; at most {most} of text"
        return Answer((Finding("page_limit", GREEN, evidence, where),))
    evidence = f"{building.PDF} has {count} pages; how many are text is counted when it is built"
    return Answer((Finding("page_limit", NOTE, evidence, where),))

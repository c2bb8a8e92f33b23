"""The answers to all exercises: delete this folder before students get the repository.

RIGHT is {exercise: a right answer}; WRONG lists common wrong answers as (exercise, answer, a part
of the message that it must meet). tests/test_check.py tries them all; without this folder it skips
those tests.
"""

from . import notebook_1, notebook_2, notebook_3, notebook_4, notebook_5, notebook_6

NOTEBOOKS = (notebook_1, notebook_2, notebook_3, notebook_4, notebook_5, notebook_6)
RIGHT = {name: answer for notebook in NOTEBOOKS for name, answer in notebook.RIGHT.items()}
WRONG = [case for notebook in NOTEBOOKS for case in notebook.WRONG]

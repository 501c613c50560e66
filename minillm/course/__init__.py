"""The course around the package: notebooks folded into modules, workbooks, checks of what the reader wrote.

`from minillm.course import check` is all that a notebook needs.
"""

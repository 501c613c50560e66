"""What the checks check: one module a chapter, named like the chapter; a long one imports others, which say `chapter=`.

A part is a function or class of the chapter's module; its check is a list of mechanisms in order. Each is a function
that takes the candidate and raises `Mistake` if the mechanism is broken; the first broken one is what a report tells.

    from minillm.course.checks.harness import Mistake, checks, same

    @checks("causal_mask")
    def hides_the_future(causal_mask):
        mask = causal_mask(4, 4)
        if mask[0, 1]:
            raise Mistake("position t sees t+1")

Order, signature, time limit, a missing return, arguments changed in place, results that differ from call to call,
errors and the empty stub are the harness's business, not the check's.
"""

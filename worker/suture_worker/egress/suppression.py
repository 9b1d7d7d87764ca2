"""Which classes a site tells of: small ones are left out, and others with them, so that nothing gives them away."""

from __future__ import annotations

from suture_contract.documents import SplitScores


def without_small_classes(scores: SplitScores, minimum: int, *, exclusive: bool) -> SplitScores:
    """Return the same without every class that has, or betrays one that has, fewer than `minimum` samples.

    Whatever is left out as a whole can be had by subtracting the rest from the split. So at least two classes are left
    out if any is, and they have at least `minimum` samples together: the smallest others join those that are too small
    (complementary suppression; Willenborg and de Waal, "Elements of Statistical Disclosure Control", 2001). Where
    samples may have several labels or none, the samples without a label can be had in the same way: a label that all
    but a few have is left out.
    """
    order = sorted(scores.classes, key=lambda label: (scores.classes[label].n, int(label)))
    # Samples without a row are hidden already, as one class.
    unseen = scores.n - sum(one.n for one in scores.classes.values())
    groups = int(unseen > 0)
    hidden = set()
    for label in order:
        n = scores.classes[label].n
        betrayed = groups == 1 or 0 < unseen < minimum
        if n >= minimum and not betrayed:
            break
        hidden.add(label)
        groups, unseen = groups + 1, unseen + n
    return scores.model_copy(
        update={
            "classes": {
                label: one
                for label, one in scores.classes.items()
                if label not in hidden and (exclusive or not 0 < scores.n - one.n < minimum)
            }
        }
    )

"""Which classes a site tells of: small ones are left out, and others with them, so that nothing gives them away."""

from __future__ import annotations

from suture_contract.documents import ClassScores, SplitScores, TrainScore


def people(counted: SplitScores | ClassScores | TrainScore) -> int:
    """Return of how many patients the samples are; without a count of patients every sample is one."""
    return counted.n if counted.patients is None else counted.patients


def without_small_classes(scores: SplitScores, minimum: int, *, exclusive: bool) -> SplitScores:
    """Return the same without every class that has, or betrays one that has, samples of fewer than `minimum` patients.

    Whatever is left out as a whole can be had by subtracting the rest from the split. So at least two classes are left
    out if any is, and they have at least `minimum` patients together: the smallest others join those that are too small
    (complementary suppression; Willenborg and de Waal, "Elements of Statistical Disclosure Control", 2001). Where
    samples may have several labels or none, the samples without a label can be had in the same way: a label that all
    but a few have is left out. A patient may be in several classes: what is left out together has at least as many
    patients as the largest class of it, and as the split has beyond the other classes.
    """

    def size(label: str) -> tuple[int, int, int]:
        return people(scores.classes[label]), scores.classes[label].n, int(label)

    order = sorted(scores.classes, key=size)
    # Samples without a row are hidden already, as one class.
    unseen = scores.n - sum(class_scores.n for class_scores in scores.classes.values())
    groups, largest = int(unseen > 0), 0
    others = people(scores) - sum(map(people, scores.classes.values()))
    hidden = set()
    for label in order:
        class_scores = scores.classes[label]
        betrayed = groups == 1 or (unseen > 0 and max(largest, others) < minimum)
        if people(class_scores) >= minimum and not betrayed:
            break
        hidden.add(label)
        groups, unseen = groups + 1, unseen + class_scores.n
        others, largest = others + people(class_scores), people(class_scores)
    return scores.model_copy(
        update={
            "classes": {
                label: class_scores
                for label, class_scores in scores.classes.items()
                if label not in hidden
                and (exclusive or class_scores.n == scores.n or people(scores) - people(class_scores) >= minimum)
            }
        }
    )

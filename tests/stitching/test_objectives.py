"""Combining outputs, losses and scores per task."""

import pytest
import torch

from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec, ModelMetadata, OutputSpec
from suture_stitching.objectives import objective_of


def model(labels: tuple[str, ...] | None, task: str = "classification", format: str = "logits") -> ModelMetadata:
    channels = len(labels) if labels else 2
    return ModelMetadata(  # type: ignore[call-arg]
        schema="suture.model/1",
        task=task,
        inputs={"image": InputSpec(num_channels=1, spatial_shape=(8, 8))},
        outputs={"pred": OutputSpec(num_channels=channels, format=format)},
        labels=labels,
        license="CC0-1.0",
    )


def test_equal_labels_are_averaged_as_probabilities() -> None:
    task = objective_of([model(("a", "b")), model(("a", "b"), format="probabilities")], ("a", "b"))
    logits, probabilities = torch.randn(5, 2), torch.rand(5, 2).softmax(1)
    assert torch.allclose(task.combine([logits, probabilities], [0, 1]), (logits.softmax(1) + probabilities) / 2)


def test_labels_are_matched_by_name() -> None:
    task = objective_of([model(("a", "b")), model(("c", "b"), format="probabilities")], ("b", "c"))
    assert task.labels == ("a", "b", "c")
    first, second = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.7, 0.3]])
    p = first.softmax(1)[0]
    mean = torch.tensor([p[0], (p[1] + 0.3) / 2, 0.7])
    combined = task.combine([first, second], [0, 1])
    assert torch.allclose(combined[0], mean / mean.sum())
    assert combined.sum() == pytest.approx(1)
    # Target 1 of the dataset is `c`, position 2 of the ensemble.
    assert task.scores(combined, torch.tensor([1])).tolist() == [1.0]
    assert float(task.loss(combined, torch.tensor([1]))) == pytest.approx(-float((0.7 / mean.sum()).log()), abs=1e-6)


def test_a_member_alone_never_predicts_what_it_does_not_know() -> None:
    task = objective_of([model(("a", "b")), model(("c", "b"))], ("a",))
    assert task.combine([torch.zeros(3, 2)], [0])[:, 2].tolist() == [0, 0, 0]


def test_a_label_nobody_knows_is_named() -> None:
    with pytest.raises(SutureError, match="'z'") as raised:
        objective_of([model(("a", "b")), model(("a", "b"))], ("a", "z"), where="digits")
    assert raised.value.code == "dataset.unknown_label"


def test_a_label_written_otherwise_is_asked_about() -> None:
    with pytest.raises(SutureError, match=r'aliases = \{"B" = "b"\}') as raised:
        objective_of([model(("a", "b")), model(("a", "b"))], ("a", "B"), where="digits")
    assert raised.value.code == "dataset.unknown_label"


def test_labels_of_two_models_written_otherwise_are_never_two_labels() -> None:
    """Each was averaged over the one model that knew it, and two perfect models were right about nothing."""
    with pytest.raises(SutureError, match=r"'normal'.*'Normal'") as raised:
        objective_of([model(("normal", "polyp")), model(("Normal", "polyp"))], ("normal", "polyp"))
    assert raised.value.code == "members.incompatible"


def test_models_of_different_tasks_are_refused() -> None:
    with pytest.raises(SutureError, match="member 0 does classification, member 1 does regression") as raised:
        objective_of([model(("a", "b")), model(None, "regression")], ("a", "b"))
    assert raised.value.code == "members.incompatible"


def test_dice_is_that_of_the_definition() -> None:
    task = objective_of([model(("background", "cell"), "segmentation")] * 2, ("background", "cell"))
    truth = torch.zeros(3, 4, 4, dtype=torch.int64)
    truth[0, :2] = 1
    truth[1, 0, 0] = 1
    found = torch.zeros(3, 4, 4, dtype=torch.int64)
    found[0, 1:3] = 1
    combined = torch.nn.functional.one_hot(found, 2).movedim(-1, 1).float()
    assert task.scores(combined, truth).tolist() == [0.5, 0.0, 1.0]
    assert float(task.loss(combined, truth)) > float(
        task.loss(torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).float(), truth)
    )


def test_regression_measures_absolute_error() -> None:
    task = objective_of([model(None, "regression")] * 2, ())
    combined = task.combine([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])], [0, 1])
    assert combined.tolist() == [[2.0, 3.0]]
    assert task.scores(combined, torch.tensor([[2.0, 1.0]])).tolist() == [1.0]
    assert not task.higher_is_better


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_gradients_flow_through_the_loss(kind: str) -> None:
    task = objective_of([model(("a", "b"), kind)] * 2, ("a", "b"))
    shape = (4, 2) if kind == "classification" else (4, 2, 8, 8)
    outputs = [torch.randn(shape, requires_grad=True) for _ in range(2)]
    targets = torch.randint(2, (4,) if kind == "classification" else (4, 8, 8))
    task.loss(task.combine(outputs, [0, 1]), targets).backward()
    assert all(output.grad is not None and bool(output.grad.abs().sum() > 0) for output in outputs)


def test_several_labels_at_once_are_averaged_one_by_one() -> None:
    task = objective_of(
        [model(("a", "b"), "multilabel"), model(("c", "b"), "multilabel", "probabilities")], ("c", "b", "a")
    )
    first, second = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.9, 0.4]])
    combined = task.combine([first, second], [0, 1])
    p = first.sigmoid()[0]
    assert torch.allclose(combined[0], torch.tensor([p[0], (p[1] + 0.4) / 2, 0.9]))
    targets = torch.tensor([[1.0, 0.0, 1.0]])
    wanted = -(combined[0, 2].log() + (1 - combined[0, 1]).log() + combined[0, 0].log()) / 3
    assert float(task.loss(combined, targets)) == pytest.approx(float(wanted), abs=1e-6)


def test_f1_is_that_of_the_definition() -> None:
    task = objective_of([model(("a", "b", "c"), "multilabel")] * 2, ("a", "b"))
    combined = torch.tensor([[0.9, 0.1, 0.9], [0.9, 0.9, 0.0], [0.1, 0.2, 0.9], [0.6, 0.2, 0.0], [0.1, 0.2, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # `c` is not among the dataset's labels, so what is said of it counts for nothing.
    assert task.scores(combined, targets).tolist() == [1.0, pytest.approx(2 / 3), 1.0, 0.0, 0.0]
    assert (task.metric, task.higher_is_better) == ("f1", True)


def test_certain_and_wrong_is_a_finite_loss() -> None:
    task = objective_of([model(("a", "b"), "multilabel")] * 2, ("a", "b"))
    assert torch.isfinite(task.loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])))


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("format", ["logits", "probabilities"])
def test_one_channel_stands_for_two_labels(kind: str, format: str) -> None:
    binary = model(("well", "ill"), kind, format)
    binary = binary.model_copy(update={"outputs": {"pred": OutputSpec(num_channels=1, format=format)}})
    task = objective_of([binary, model(("ill", "well"), kind)], ("well", "ill"))
    shape = (4, 3, 3)[: 1 if kind == "classification" else 3]
    one, two = torch.rand(shape[0], 1, *shape[1:]), torch.randn(shape[0], 2, *shape[1:])
    ill = one.sigmoid() if format == "logits" else one
    combined = task.combine([one, two], [0, 1])
    assert torch.allclose(combined[:, 1:], (ill + two.softmax(1)[:, :1]) / 2, atol=1e-6)
    assert torch.allclose(combined.sum(1), torch.ones(shape), atol=1e-6)


def test_structures_that_the_data_do_not_show_are_not_scored() -> None:
    task = objective_of([model(("background", "cell", "vessel"), "segmentation")] * 2, ("background", "cell"))
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    truth[0, :2] = 1
    found = truth.clone()
    found[0, 3] = 2  # drawn by nobody here, and yet it may be a vessel
    combined = torch.nn.functional.one_hot(found, 3).movedim(-1, 1).float()
    assert task.scores(combined, truth).tolist() == [1.0]


def test_calibration_is_that_of_the_definition() -> None:
    task = objective_of([model(("a", "b", "c"), format="probabilities")], ("a", "b", "c"))
    generator = torch.Generator().manual_seed(0)
    combined = torch.rand(500, 3, generator=generator).softmax(1)
    truth = torch.randint(0, 3, (500,), generator=generator)
    found = task.calibration(task.measure(combined, truth)[1], 500)
    assert found is not None
    confidence, predicted = combined.max(1)
    right = (predicted == truth).double()
    ece = 0.0
    for index in range(15):
        inside = (confidence >= index / 15) & (confidence < (index + 1) / 15)
        if inside.any():
            ece += float(inside.double().mean() * (confidence[inside].mean() - right[inside].mean()).abs())
    brier = float((combined - torch.eye(3)[truth]).square().sum(1).mean())
    assert found.ece == pytest.approx(ece, abs=1e-5)
    assert found.brier == pytest.approx(brier, abs=1e-5)


def test_tallies_do_not_depend_on_how_samples_are_cut_up() -> None:
    task = objective_of([model(("a", "b", "c"), format="probabilities")], ("c", "a"))
    generator = torch.Generator().manual_seed(1)
    combined = torch.rand(100, 3, generator=generator).softmax(1)
    truth = torch.randint(0, 2, (100,), generator=generator)
    whole = task.measure(combined, truth)[1]
    parts = [task.measure(combined[start : start + 7], truth[start : start + 7])[1] for start in range(0, 100, 7)]
    assert torch.equal(whole, torch.stack(parts).flip(0).sum(0))
    classes = task.classes(whole)
    assert {label: n for label, (n, _) in classes.items()} == {0: int((truth == 1).sum()), 2: int((truth == 0).sum())}
    assert sum(n * share for n, share in classes.values()) == pytest.approx(float(task.scores(combined, truth).sum()))


def test_labels_of_several_at_once_are_told_with_the_share_that_is_found() -> None:
    task = objective_of([model(("a", "b", "c"), "multilabel", format="probabilities")], ("c", "a"))
    combined = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.9, 0.8], [0.7, 0.0, 0.9]])  # of a, b and c
    truth = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # of c and a
    tally = task.measure(combined, truth)[1]
    assert task.classes(tally) == {0: (2, 1.0), 2: (3, pytest.approx(2 / 3))}
    assert task.calibration(tally, 3) is None


def test_structures_are_told_with_the_dice_of_the_samples_that_show_them() -> None:
    task = objective_of([model(("background", "cell", "vessel"), "segmentation")] * 2, ("background", "vessel", "cell"))
    truth = torch.zeros(3, 4, 4, dtype=torch.int64)
    truth[0, 0], truth[1, 0], truth[1, 1] = 1, 1, 2  # a vessel in two samples, a cell in one
    found = torch.tensor([0, 2, 1])[truth]
    found[1, 0, :2] = 0  # half a vessel is missed
    found[2, 0, 0] = 1  # and a cell is found where there is none
    combined = torch.nn.functional.one_hot(found, 3).movedim(-1, 1).float()
    scores, tally = task.measure(combined, truth)
    assert task.classes(tally) == {1: (1, 1.0), 2: (2, pytest.approx((1 + 2 / 3) / 2, abs=1e-6))}
    assert scores.tolist() == [1.0, pytest.approx((1 + 2 / 3) / 2), 0.0]


def test_values_are_told_of_without_calibration_and_classes() -> None:
    task = objective_of([model(None, "regression")], ())
    tally = task.measure(torch.rand(4, 2), torch.ones(4, 2))[1]
    assert tally.numel() == 0
    assert task.calibration(tally, 4) is None
    assert task.classes(tally) == {}

"""The pair: what the encoder runs through which head, and how the teacher follows."""

import pytest
import torch

from franca.objective import StudentTeacher


def test_the_teacher_starts_as_the_student_and_never_learns_by_gradient(make_pair):
    fresh, other = make_pair(seed=0), make_pair(seed=1)
    pair = StudentTeacher(fresh.student, other.teacher)
    for (name, value), copy in zip(pair.student.state_dict().items(), pair.teacher.state_dict().values(), strict=True):
        torch.testing.assert_close(copy, value, atol=0, rtol=0, msg=name)
        assert copy.data_ptr() != value.data_ptr()
    assert all(parameter.requires_grad for parameter in pair.student.parameters())
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())


def test_names_begin_with_backbone_dino_head_ibot_head(make_pair):
    names = make_pair().teacher.state_dict()
    assert {name.split(".")[0] for name in names} == {"backbone", "dino_head", "ibot_head"}


def test_the_teacher_stays_in_eval_mode(make_pair):
    pair = make_pair(drop_path_rate=0.5)
    pair.train()
    assert all(module.training for module in pair.student.modules())
    assert not any(module.training for module in pair.teacher.modules())
    pair.eval()
    assert not any(module.training for module in pair.modules())


def test_a_teacher_of_another_form_is_refused(make_pair):
    with pytest.raises(RuntimeError, match=r"dino_head\.last_layers\.2\.weight_g"):
        StudentTeacher(make_pair().student, make_pair(nesting=(1 / 2, 1)).teacher)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.994, 1.0])
def test_the_teacher_is_an_exponential_moving_average(make_pair, momentum):
    pair = make_pair()
    student = {name: value.clone() for name, value in pair.student.state_dict().items()}
    before = {name: value.clone() for name, value in pair.teacher.state_dict().items()}
    pair.update_teacher(momentum)
    for name, value in pair.teacher.state_dict().items():
        expected = momentum * before[name].double() + (1 - momentum) * student[name].double()
        torch.testing.assert_close(value, expected.float(), atol=1e-6, rtol=0, msg=name)
        torch.testing.assert_close(pair.student.state_dict()[name], student[name], atol=0, rtol=0)


def test_crops_of_two_sizes_together_equal_each_alone(make_pair, make_batch):
    batch, encoder = make_batch(), make_pair().student.eval()
    together = encoder([batch.global_crops, batch.local_crops], batch.mask_indices, batch.masks)
    first = encoder([batch.global_crops], batch.mask_indices, batch.masks)
    second = encoder([batch.local_crops], batch.mask_indices[:0])
    torch.testing.assert_close(together.class_tokens, torch.cat([first.class_tokens, second.class_tokens]))
    for level, ours in enumerate(together.crops):
        torch.testing.assert_close(ours.rows, torch.cat([first.crops[level].rows, second.crops[level].rows]))
        torch.testing.assert_close(ours.prototypes, first.crops[level].prototypes)
        torch.testing.assert_close(together.patches[level].rows, first.patches[level].rows)


def test_the_patch_head_sees_the_chosen_patches_and_masks_hide_them(make_pair, make_batch):
    batch, encoder = make_batch(), make_pair().student.eval()
    seen: list[torch.Tensor] = []
    factors = encoder.ibot_head.factors
    encoder.ibot_head.factors = lambda rows: seen.append(rows) or factors(rows)
    encoder([batch.global_crops], batch.mask_indices, batch.masks)
    features = encoder.backbone.forward_features(batch.global_crops, batch.masks)
    expected = features["x_norm_patchtokens"][batch.masks]  # real rows, in reading order
    torch.testing.assert_close(seen[0][: len(expected)], expected)
    assert len(seen[0]) == len(batch.mask_indices)
    plain = encoder([batch.global_crops], batch.mask_indices).class_tokens
    masked = encoder([batch.global_crops], batch.mask_indices, batch.masks).class_tokens
    hidden = batch.masks.any(dim=1)
    torch.testing.assert_close(plain[~hidden], masked[~hidden])
    assert ((plain - masked).abs().amax(dim=1)[hidden] > 1e-4).all()

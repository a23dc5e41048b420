"""The mutations of `mutate_method.py`: slips that a tired person could make, in every module of gfl/method."""

from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """One changed line: `old` occurs exactly once in the module."""

    module: str
    old: str
    new: str

    def path(self, root: Path) -> Path:
        """The module's file in a repository."""
        return root / "gfl" / "method" / f"{self.module}.py"

    def __str__(self) -> str:
        return f"{self.module}: {self.old}  ->  {self.new or '(nothing)'}"


REPLACEMENTS = {
    "assign": [
        ("MIN_INSIDE = 0.01", "MIN_INSIDE = 0.0"),
        ("topk: int = 9", "topk: int = 10"),
        ("eligible &= targets.valid.unsqueeze(-1)", "eligible &= True"),
        ("positive = eligible & within &", "positive = eligible &"),
        ("(iou >= threshold.unsqueeze(-1))", "(iou > threshold.unsqueeze(-1))"),
        ("half = grid.strides[:, None] * scale / 2", "half = grid.strides[:, None] * scale"),
        ("((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2).unbind", "boxes_xyxy[..., :2].unbind"),
        ("distance.abs().masked_fill(~allowed, torch.inf)", "distance.abs()"),
        ("largest=False", "largest=True"),
        ("indices.append(nearest + start)", "indices.append(nearest)"),
        ("points[:width, 0] - x, allowed[..., :width], topk", "points[:width, 0] - x, allowed[..., :width], topk - 3"),
        ("allowed[..., ::width], topk", "allowed[..., ::width], topk - 3"),
        ("(bits << 32 | index)", "(bits << 32 | (2**31 - index))"),
        ("distance, allowed, topk, candidates", "distance, allowed | True, topk, candidates"),
        ("(count - 1).clamp(min=1)", "count"),
        ("return mean + variance.sqrt()", "return mean + variance"),
        ('claim_iou, "amax")', 'claim_iou, "amin")'),
        ('slots, "amin")', 'slots, "amax")'),
        ("(distances.amin(dim=-1) > 0)", "(distances.amin(dim=-1) >= 0)"),
        ("(offset < center_radius *", "(offset <= center_radius *"),
        (".abs().amax(dim=-1)  # (B, P, G)", ".amax(dim=-1)  # (B, P, G)"),
        ("distances.amax(dim=-1), low=4, high=8", "distances.amax(dim=-1), low=4, high=9"),
        ("offset <= shrink / 2 * size", "offset < shrink / 2 * size"),
        ("shrink: float = 0.4", "shrink: float = 0.5"),
        ("smallest=1.0, largest=16", "smallest=0.0, largest=16"),
        ("(sizes <= high_px[:, None])", "(sizes < high_px[:, None])"),
        (
            "matches = matches & targets.valid[:, None] & inside.unsqueeze(-1)",
            "matches = matches & targets.valid[:, None]",
        ),
        ("best >= positive_iou", "best > positive_iou"),
        ("best < negative_iou", "best <= negative_iou"),
        ("& (highest > 0)", "& (highest >= 0)"),
        ("targets.valid[:, None] & inside.unsqueeze(-1)), 0", "inside.unsqueeze(-1)), 0"),
        ("slots, -1).amax(dim=-1)", "slots, -1).amin(dim=-1)"),
    ],
    "boxes": [
        ("(boxes_xyxy[..., 2] - boxes_xyxy[..., 0])", "(boxes_xyxy[..., 2] + boxes_xyxy[..., 0])"),
        ("return intersection / union.clamp(min=eps)", "return intersection / union"),
        (
            "def box_iou(a: Tensor, b: Tensor, *, eps: float = 1e-6)",
            "def box_iou(a: Tensor, b: Tensor, *, eps: float = 1e-3)",
        ),
        ("union = union.clamp(min=eps)", "union = union.clamp(min=1)"),
        ("hull = torch.cat([torch.minimum(", "hull = torch.cat([torch.maximum("),
        ("(hull_area - union) / hull_area", "(hull_area - union) / union"),
        ("(bottom_right - top_left).clamp(min=0)", "(bottom_right - top_left)"),
        ("box_area(a) + box_area(b) - intersection", "box_area(a) + box_area(b)"),
        ("points + distances[..., 2:]", "points - distances[..., 2:]"),
        ("boxes_xyxy[..., 2:] - points]", "points - boxes_xyxy[..., 2:]]"),
        ("distances.clamp(min=0).unflatten", "distances.abs().unflatten"),
        ("right_bottom).clamp(min=1e-6)", "right_bottom).clamp(min=1e-3)"),
        ("ratio.prod(dim=-1).sqrt()", "ratio.prod(dim=-1)"),
        ("[width, height, width, height]", "[height, width, height, width]"),
        ("torch.minimum(boxes_xyxy.clamp(min=0), limit)", "torch.minimum(boxes_xyxy, limit)"),
    ],
    "box_representation": [
        ("ANCHOR_SCALE = 8.0", "ANCHOR_SCALE = 4.0"),
        ("DELTA_STDS = (0.1, 0.1, 0.2, 0.2)", "DELTA_STDS = (0.2, 0.2, 0.1, 0.1)"),
        ("math.log(16 / 1000)", "math.log(16 / 100)"),
        ("return F.relu(reg_pred.squeeze(-1).float())", "return reg_pred.squeeze(-1).float().abs()"),
        ("[half - center, half + center]", "[half + center, half - center]"),
        ("return F.relu(reg_pred[..., 0].float())", "return reg_pred[..., 0].float()"),
        ("MAX_LOG_VARIANCE) / 2).exp()", "MAX_LOG_VARIANCE)).exp()"),
        ("gaussian_loss(reg_pred[..., 0], reg_pred[..., 1]", "gaussian_loss(reg_pred[..., 0].relu(), reg_pred[..., 1]"),
        ('device="cpu") * delta', 'device="cpu")'),
        ("reg_pred.float().softmax(dim=-1)", "reg_pred.softmax(dim=-1)"),
        ("/ mode.sum(dim=-1)", "/ mode.amax(dim=-1)"),
        ("(target_distances / self.delta)", "(target_distances * self.delta)"),
        ("clamp(0, self.reg_max - 0.1)", "clamp(0, self.reg_max - 0.5)"),
        ("distribution_focal_loss(reg_pred, bins).mean(dim=-1)", "distribution_focal_loss(reg_pred, bins).sum(dim=-1)"),
        ("(step > 0, step < 0)", "(step >= 0, step < 0)"),
        ("cumsum(dim=-1), (1, 0))", "cumsum(dim=-1), (0, 1))"),
    ],
    "losses": [
        ("MAX_LOG_VARIANCE = 8.0", "MAX_LOG_VARIANCE = 10.0"),
        ("target: Tensor, *, beta: float = 2.0", "target: Tensor, *, beta: float = 1.0"),
        ("(target - logits.sigmoid()).abs().pow(beta)", "(target - logits.sigmoid()).pow(beta)"),
        ("return (target - logits.sigmoid()).abs().pow(beta)", "return (target - logits.sigmoid()).abs().pow(2)"),
        ("target_bins.floor()", "target_bins.round()"),
        (".clamp(max=reg_logits.shape[-1] - 2)", ".clamp(max=reg_logits.shape[-1] - 3)"),
        (
            "-(1 - right_weight) * log_left - right_weight * log_right",
            "-right_weight * log_left - (1 - right_weight) * log_right",
        ),
        ("torch.xlogy(right - target, prob_left)", "torch.xlogy(target - right, prob_left)"),
        ("left * prob_left + right * prob_right", "right * prob_left + left * prob_right"),
        ("(-log_variance).exp() / 2 + log_variance / 2", "(-log_variance).exp() / 2 + log_variance"),
        (
            "_at_least_float32(log_variance).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)",
            "_at_least_float32(log_variance)",
        ),
        ("return 1 - generalized_box_iou", "return 2 - generalized_box_iou"),
        ("log_prob = _at_least_float32(reg_logits)", "log_prob = reg_logits"),
    ],
    "criterion": [
        ("box_weight: float = 2.0", "box_weight: float = 1.0"),
        ("dfl_weight: float = 0.25", "dfl_weight: float = 0.5"),
        ("points = output.grid.points / output.grid.strides[:, None]", "points = output.grid.points"),
        ("points, positive = grid.points / grid.strides[:, None]", "points, positive = grid.points"),
        ("boxes / grid.strides[:, None], _unit", "boxes, _unit"),
        ("box_iou(boxes.detach(), matched.boxes)", "box_iou(boxes, matched.boxes)"),
        ("box_weight(output, quality_target) * positive", "box_weight(output, quality_target)"),
        ("inside & assignment.trained", "assignment.trained"),
        ("inside & assignment.trained", "inside"),
        ("self.cls_weight * cls_loss / num_positive", "self.cls_weight * cls_loss / sum_weight"),
        (
            "(giou_loss(boxes, matched.boxes) * weight).sum() / sum_weight",
            "(giou_loss(boxes, matched.boxes) * weight).sum() / num_positive",
        ),
        ("(own_loss * weight).sum() / sum_weight", "(own_loss * positive).sum() / sum_weight"),
        ("(branch_loss * positive).sum() / num_positive", "(branch_loss * weight).sum() / num_positive"),
        ("_unit_boxes(points))", "boxes)"),
        ("positive.sum(dim=1).clamp(min=1).sum()", "positive.sum().clamp(min=1)"),
        ("mean.clamp(min=1 / world_size())", "mean.clamp(min=1)"),
        (
            "mean_over_processes(torch.stack([count_positive(positive).to(weight.dtype), weight.sum()]))",
            "torch.stack([count_positive(positive).to(weight.dtype), weight.sum()])",
        ),
        ("torch.stack([step[0], mean[1] * step[1]])", "torch.stack([mean[0], mean[1] * step[1]])"),
        ("torch.stack([step[0], mean[1] * step[1]])", "torch.stack([step[0], mean[1]])"),
    ],
    "points": [
        (
            "y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride",
            "y = (torch.arange(height, device=device, dtype=torch.float32)) * stride + offset",
        ),
        ("torch.stack([grid_x, grid_y], dim=-1)", "torch.stack([grid_y, grid_x], dim=-1)"),
        ('indexing="ij"', 'indexing="xy"'),
        ("float(stride), device", "float(stride) / 2, device"),
        ("image_sizes + SIZE_DIVISOR - 1", "image_sizes + SIZE_DIVISOR"),
        (
            "cell_start = torch.floor(grid.points / grid.strides[:, None]) * grid.strides[:, None]",
            "cell_start = grid.points",
        ),
        ("cell_start < padded.flip(-1)[:, None]", "cell_start <= padded.flip(-1)[:, None]"),
        ("padded.flip(-1)", "padded"),
    ],
    "postprocess": [
        ("(scores > score_thresh)", "(scores >= score_thresh)"),
        ("~(scores.amax(dim=1) <= score_thresh)", "scores.amax(dim=1) > score_thresh"),
        ("point + image * num_points", "point"),
        ("inside.flatten()[place]", "inside.flatten()[place] | True"),
        ("min(pre_nms_topk, end - start)", "end - start"),
        ("[start + score[start:end]", "[score[start:end]"),
        ("score = score * rank_factor.flatten()[place]", "score = score"),
        ("place // num_points, place % num_points", "place // num_points, place // num_points"),
        ("(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2])", "(boxes_xyxy[:, 2:] >= boxes_xyxy[:, :2])"),
        ("(boxes_xyxy[solid], score, label, point)", "(boxes_xyxy[solid], score, label * 0, point)"),
        ("nms_iou)[:max_detections]", "nms_iou)"),
        ("(0.0, 0.0, -1, 0)", "(0.0, 0.0, 0, 0)"),
    ],
    "quality": [
        ("GUIDE_POWER = 1.5", "GUIDE_POWER = 1.0"),
        ("return output.cls_logits.float().sigmoid()", "return output.cls_logits.sigmoid()"),
        ("quality_target, beta=self.beta) * positive)", "quality_target, beta=self.beta))"),
        ("detach().amax(dim=-1, keepdim=True)", "detach().mean(dim=-1, keepdim=True)"),
        ("_replace(cls_logits=best)).detach()", "_replace(cls_logits=best))"),
        ("output.reg_pred.float().softmax(dim=-1).topk", "output.reg_pred.float().topk"),
        ("statistics.mean(dim=-1, keepdim=True)", "statistics.amax(dim=-1, keepdim=True)"),
        ("self.hidden(statistics.flatten(-2)).relu()", "self.hidden(statistics.flatten(-2))"),
        ("torch.logaddexp(q, a + q)", "torch.logaddexp(q, a - q)"),
        ("-output.quality_logits.float().unsqueeze(-1)", "output.quality_logits.float().unsqueeze(-1)"),
        (
            "super().scores(output) * output.quality_logits.float().sigmoid()",
            "super().scores(output) * output.quality_logits.float()",
        ),
        ("std=0.01", "std=0.1"),
        ('iou if self.by == "iou" else centerness(distances)', 'iou if self.by != "iou" else centerness(distances)'),
        ("gamma=FOCAL_GAMMA) * positive", "gamma=FOCAL_GAMMA)"),
        ("FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0", "FOCAL_ALPHA, FOCAL_GAMMA = 0.5, 2.0"),
        ("FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0", "FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 1.0"),
        ("loss.detach()", "loss"),
        ("loss * weight * (fixed.sum() /", "loss * weight * (1 /"),
        (".sum().clamp(min=1e-6)", ".sum()"),
        ("(1 - FOCAL_ALPHA) * background", "background"),
        (
            "return output.quality_logits.float().sigmoid() if self.has_branch",
            "return output.quality_logits.float() if self.has_branch",
        ),
        ("self.has_branch = by is not None and not guide", "self.has_branch = by is not None"),
    ],
    "dense_loss": [
        (
            "at_label = _at_label(logits, labels).masked_fill(positive",
            "at_label = _at_label(logits, labels).masked_fill(trained",
        ),
        (".masked_fill(~trained.flatten()", ".masked_fill(trained.flatten()"),
        ("_at_label(logits, labels).masked_fill(~positive, 0)", "_at_label(logits, labels)"),
        ("grad_at_label.masked_fill(~positive, 0)", "grad_at_label"),
        ("score, value=-1)", "score, value=1)"),
        (".mul_(grad_sum)", ""),
        ("threshold=40", "threshold=10"),
        ("torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
    ],
}
MUTANTS = [Mutant(module, old, new) for module, pairs in REPLACEMENTS.items() for old, new in pairs]

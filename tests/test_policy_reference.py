"""The policy against the equations of section 3 and appendix A, written out in plain Python floats, one number at a time."""

import math

import pytest
import torch
from learning_parts import with_stop_head

from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.maps import column, gaussian_masks, inhibit, initial_glimpse, priority_map
from hsal_cli.policy.variant import Variant

CLASSES, C, H, W = 3, 4, 2, 3
CELLS = [(i, j) for i in range(1, H + 1) for j in range(1, W + 1)]  # i, j as in the paper, from 1


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(xs):
    exps = [math.exp(x) for x in xs]
    return [e / sum(exps) for e in exps]


def linear(weight, x, bias=None):
    rows = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]
    return rows if bias is None else [r + b for r, b in zip(rows, bias, strict=True)]


def gru(weights, x, h):
    """Cho et al. 2014, with the gates in torch's order: reset, update, new."""
    a = linear(weights["weight_ih"], x, weights["bias_ih"])
    b = linear(weights["weight_hh"], h, weights["bias_hh"])
    n = len(h)
    out = []
    for u in range(n):
        reset, update = sigmoid(a[u] + b[u]), sigmoid(a[n + u] + b[n + u])
        new = math.tanh(a[2 * n + u] + reset * b[2 * n + u])
        out.append((1 - update) * new + update * h[u])
    return out


def phi(gaussians, i, j):
    return sum(alpha * math.exp(-tall * (k1 - i) ** 2 - wide * (k2 - j) ** 2) for alpha, tall, wide, k1, k2 in gaussians)


def normalise(values, flat=1e-6):
    low, high = min(values), max(values)
    return [(v - low) / max(high - low, flat) for v in values]


def update(saliency, mask, glimpses, normalized):
    top = max(mask) if normalized else 1.0
    return [0.0 if cell in glimpses else max(s - m / top, 0.0) for cell, (s, m) in enumerate(zip(saliency, mask, strict=True))]


def part(policy, prefix):
    return {name[len(prefix) + 1 :]: t.tolist() for name, t in policy.state_dict().items() if name.startswith(prefix + ".")}


def attention(policy, hidden, saliency):
    """The mixture's parameters [(alpha, beta of rows, beta of columns, kappa1, kappa2)]."""
    settings = policy.variant
    low, high = settings.beta
    top = CELLS[saliency.index(max(saliency))]
    if settings.mask == "winner-take-all":
        return [(1.0, (low + high) / 2 / settings.aspect**2, (low + high) / 2, *map(float, top))]
    layer = part(policy, "meta_controller.attention.layer")
    out = linear(layer["weight"], hidden, layer["bias"])
    raw = [out[4 * g : 4 * (g + 1)] for g in range(settings.gaussians)]
    alphas = softmax([r[0] for r in raw])
    gaussians = []
    for alpha, (_, b, y, x) in zip(alphas, raw, strict=True):
        if settings.mask == "learned":
            centre = (sigmoid(y) * H, sigmoid(x) * W)
        else:
            reach = settings.reach
            centre = (top[0] + reach * math.tanh(y), top[1] + reach * math.tanh(x))
        beta = low + (high - low) * sigmoid(b)
        gaussians.append((alpha, beta / settings.aspect**2, beta, *centre))
    return gaussians


def convolved(layer, maps, apart):
    """What a 3 x 3 convolution with its taps so far apart makes of maps [channel][row][column], zeros around, below 0 cut off."""
    taps = [(-apart, 0), (0, 1), (apart, 2)]

    def at(channel, i, j):
        return maps[channel][i][j] if 0 <= i < H and 0 <= j < W else 0.0

    def value(weight, bias, i, j):
        total = bias
        for channel in range(len(maps)):
            total += sum(weight[channel][a][b] * at(channel, i + di, j + dj) for di, a in taps for dj, b in taps)
        return max(total, 0.0)

    return [[[value(w, b, i, j) for j in range(W)] for i in range(H)] for w, b in zip(layer["weight"], layer["bias"], strict=True)]


def stop_shift(policy, first, saliency, priority):
    """What the second head for stop adds to its score."""
    if policy.stop_head is None:
        return 0.0
    maps = [[one[i * W : (i + 1) * W] for i in range(H)] for one in (first, saliency, priority)]
    for name in ("near", "far"):
        maps = convolved(part(policy, f"stop_head.{name}"), maps, 1)
    score = part(policy, "stop_head.score")
    return linear(score["weight"], [max(max(row) for row in one) for one in maps], score["bias"])[0]


def roll_out(policy, volume, saliency, labels):
    """One example, labelled as told; yields what each meta-step has, by the names of Episode."""
    settings, stop = policy.variant, policy.stop
    scale = policy.volume_scale.item()
    columns = [[volume[c][i - 1][j - 1] / scale for c in range(C)] for i, j in CELLS]
    raw = [saliency[i - 1][j - 1] for i, j in CELLS]
    raw = [math.sqrt(s) for s in raw] if settings.saliency_transform == "sqrt" else raw
    first = normalise(raw, 0)
    standing, learned = raw if settings.update == "raw" else first, settings.mask != "winner-take-all"
    encode_meta, gru_meta = part(policy, "meta_controller.encode"), part(policy, "meta_controller.gru")
    context, location, glimpse = (part(policy, f"controller.encode_{name}") for name in ("context", "location", "glimpse"))
    by_cell = [list(column) for column in zip(*location["weight"], strict=True)]
    encode = [a + b + c for a, b, c in zip(context["weight"], by_cell, glimpse["weight"], strict=True)]  # W_encode, whole
    gru_controller, heads = part(policy, "controller.gru"), {n: part(policy, f"controller.{n}") for n in ("label", "value", "location")}
    memory = [0.0] * (stop + 1)
    h_meta, h = [0.0] * settings.meta_hidden, [0.0] * settings.controller_hidden
    for label in labels:
        S = {"normalized": standing, "rescaled": normalise(standing), "raw": normalise(standing, 1e-30)}[settings.update]
        if learned:
            h_meta = gru(gru_meta, linear(encode_meta["weight"], S + memory, encode_meta["bias"]), h_meta)
        gaussians = attention(policy, h_meta, S)
        M = [phi(gaussians, i, j) for i, j in CELLS]
        P = normalise([m * s for m, s in zip(M, S, strict=True)])
        g = [sum(m * column[c] for m, column in zip(M, columns, strict=True)) for c in range(C)]
        a = [0.0] * len(CELLS)
        if settings.controller_state == "reset":
            h = [0.0] * settings.controller_hidden
        glimpses, scores, values = [], [], []
        for i in range(settings.glimpses + 1):
            e = linear(encode, P + memory + a + g, context["bias"])
            h = gru(gru_controller, e, h)
            values.append(linear(heads["value"]["weight"], h, heads["value"]["bias"])[0])
            if i < settings.glimpses:
                mlp = heads["location"]
                seen = h + [math.sqrt(len(h)) * p for p in P] if settings.location_input != "hidden" else h
                hidden = [max(v, 0.0) for v in linear(mlp["0.weight"], seen, mlp["0.bias"])]
                scores.append(linear(mlp["2.weight"], hidden, mlp["2.bias"]))
                if settings.location_input == "priority":
                    scores[-1] = [score + policy.controller.priority_weight.item() * p for score, p in zip(scores[-1], P, strict=True)]
                cell = scores[-1].index(max(scores[-1]))
                glimpses.append(cell)
                a = [float(c == cell) for c in range(len(CELLS))]
                g = columns[cell]
        yield {
            "logits": linear(heads["label"]["weight"], h, heads["label"]["bias"]),
            "stop_shift": stop_shift(policy, first, S, P),
            "glimpses": glimpses,
            "location_logits": scores,
            "values": values,
            "masks": [M[i * W : (i + 1) * W] for i in range(H)],
            "priority": [P[i * W : (i + 1) * W] for i in range(H)],
            "saliency": [S[i * W : (i + 1) * W] for i in range(H)],
            "gaussians": gaussians,
        }
        wider = [(alpha, *(beta / settings.inhibition_width**2 for beta in betas), y, x) for alpha, *betas, y, x in gaussians]
        standing = update(standing, [phi(wider, i, j) for i, j in CELLS], glimpses, settings.inhibition == "normalized")
        memory = [float(c == label) for c in range(stop + 1)]


@pytest.mark.parametrize("glimpses", [0, 1, 2])
@pytest.mark.parametrize("state", ["carry", "reset"])
@pytest.mark.parametrize(("update", "aspect"), [("normalized", 1.0), ("rescaled", 1.0), ("raw", 2.0)])
@pytest.mark.parametrize("location_input", ["hidden", "priority"])
@pytest.mark.parametrize("inhibition", ["mask", "normalized"])
@pytest.mark.parametrize("mask", ["learned", "anchored", "winner-take-all"])
def test_roll_out_is_the_papers_equations(mask, inhibition, location_input, update, aspect, state, glimpses):
    settings = Variant(
        glimpses=glimpses,
        gaussians=1 + glimpses,
        meta_encode=5,
        meta_hidden=4,
        controller_encode=6,
        controller_hidden=7,
        location_hidden=3,
        mask=mask,
        inhibition=inhibition,
        inhibition_width=2.5 if state == "reset" else 1.0,
        location_input=location_input,
        update=update,
        aspect=aspect,
        controller_state=state,
        stop_input="state+saliency" if state == "reset" else "state",
        saliency_transform="sqrt" if glimpses == 1 else "none",
    )
    torch.manual_seed(glimpses + 3)
    policy = with_stop_head(HSAL(settings, CLASSES, (C, H, W), volume_scale=2.5).double())
    volumes = torch.rand(3, C, H, W, dtype=torch.float64) * 6
    saliency = volumes.pow(2).sum(1)
    labels = torch.tensor([[0, 0, 3, 1], [2, 1, -1, -1], [3, 2, 2, -1]])  # (B, T)
    steps = (labels >= 0).sum(1)
    episode = policy(volumes, saliency, choose=lambda t, rows, logits: labels[rows, t], steps=steps)
    for b in range(3):
        told = labels[b, : steps[b]].tolist()
        for t, expected in enumerate(roll_out(policy, volumes[b].tolist(), saliency[b].tolist(), told)):
            assert episode.labels[t, b] == told[t]
            for name, value in expected.items():
                found = getattr(episode, name)[t, b]
                wanted = torch.tensor(value, dtype=found.dtype).view_as(found)
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, name=name, t=t: f"{name} at step {t}: {m}")


def test_greedy_roll_out_ends_where_the_reference_names_stop():
    torch.manual_seed(4)
    settings = Variant(meta_encode=5, meta_hidden=4, controller_encode=6, controller_hidden=7, location_hidden=3)
    policy = with_stop_head(HSAL(settings, CLASSES, (C, H, W)).double())
    volumes = torch.randn(8, C, H, W, dtype=torch.float64).abs() * 4
    saliency = volumes.pow(2).sum(1)
    with torch.no_grad():
        # Labels that differ between examples, and stop about as likely as not to be the highest.
        policy.controller.label.weight.mul_(8)
        logits = policy(volumes, saliency, choose=greedy, steps=torch.full((8,), 4)).scores
        policy.controller.label.bias[CLASSES] -= (logits[..., CLASSES] - logits[..., :CLASSES].amax(-1)).median()
    episode = policy(volumes, saliency, choose=greedy, max_steps=5)
    for b in range(8):
        labels: list[int] = []
        while len(labels) < 5 and policy.stop not in labels:
            *_, last = roll_out(policy, volumes[b].tolist(), saliency[b].tolist(), [*labels, 0])
            scores = [*last["logits"][:-1], last["logits"][-1] + last["stop_shift"]]
            labels.append(scores.index(max(scores)))
        assert episode.labels[: len(labels), b].tolist() == labels
        assert int(episode.lengths[b]) == len(labels)
    assert len(set(episode.lengths.tolist())) > 1


@pytest.mark.parametrize(("height", "width", "components"), [(7, 7, 5), (3, 5, 1), (1, 4, 2)])
def test_mask_is_the_mixture_of_gaussians(height, width, components):
    generator = torch.Generator().manual_seed(0)
    mixture = torch.rand(4, components, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 2, 0.5, height, width])
    masks = torch.stack(gaussian_masks(mixture, height, width, (1.0, 2.5)))
    assert masks.shape == (2, 4, height, width)
    assert torch.autograd.gradcheck(lambda given: gaussian_masks(given, height, width, (1.0, 2.5)), mixture.requires_grad_())
    for b in range(4):
        narrow = mixture[b].tolist()
        wide = [(alpha, tall / 2.5**2, broad / 2.5**2, k1, k2) for alpha, tall, broad, k1, k2 in narrow]
        for i in range(height):
            for j in range(width):
                assert masks[0, b, i, j].item() == pytest.approx(phi(narrow, i + 1, j + 1), rel=1e-12)
                assert masks[1, b, i, j].item() == pytest.approx(phi(wide, i + 1, j + 1), rel=1e-12)


def test_no_number_of_a_mask_or_priority_map_is_too_small_for_a_fast_product() -> None:
    """A product with a subnormal number takes a CPU many times as long; nothing else is to change."""
    centres = torch.cartesian_prod(torch.arange(1.0, 8), torch.arange(1.0, 8))
    mixture = torch.cat([torch.full((49, 1), 0.2), torch.full((49, 2), 1.9), centres], 1)[:, None]  # (B, 1, 5)
    mask = gaussian_masks(mixture, 7, 7, (1.0,))[0]
    priority = priority_map(mask, torch.rand(49, 7, 7, generator=torch.Generator().manual_seed(0)))
    down, across = torch.meshgrid(torch.arange(1.0, 8), torch.arange(1.0, 8), indexing="ij")
    exact = 0.2 * torch.exp(-1.9 * ((centres[:, 0, None, None] - down) ** 2 + (centres[:, 1, None, None] - across) ** 2).double())
    least = torch.finfo(torch.float32).tiny
    assert ((exact > 1e-45) & (exact < least)).any()  # what float32 would hold as subnormal numbers
    for maps in (mask, priority):
        assert not ((maps != 0) & (maps < least)).any()
    torch.testing.assert_close(mask.double(), exact, rtol=1e-5, atol=1e-30)


def test_interface_weights_the_saliency_map_and_the_volume_by_the_mask():
    generator = torch.Generator().manual_seed(1)
    mask, saliency = torch.rand(2, 3, 2, 5, generator=generator, dtype=torch.float64)
    volumes = torch.rand(3, 4, 10, generator=generator, dtype=torch.float64)
    for b in range(3):
        m, s, v = mask[b].flatten().tolist(), saliency[b].flatten().tolist(), volumes[b].tolist()
        assert priority_map(mask, saliency)[b].flatten().tolist() == pytest.approx(normalise([x * y for x, y in zip(m, s, strict=True)]))
        expected = [sum(x * y for x, y in zip(m, row, strict=True)) for row in v]
        assert initial_glimpse(mask, volumes.transpose(1, 2))[b].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("side", [3, 6])
def test_glimpses_of_some_examples_are_those_of_their_volumes_copied(side):
    generator = torch.Generator().manual_seed(2)
    rows = torch.tensor([4, 0, 4])
    volumes = torch.rand(5, 9, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, side, side, generator=generator, dtype=torch.float64, requires_grad=True)
    found, copied = initial_glimpse(mask, volumes, rows), initial_glimpse(mask, volumes[rows])
    torch.testing.assert_close(found, copied)
    by_mask = (torch.autograd.grad(glimpses.square().sum(), mask)[0] for glimpses in (found, copied))
    torch.testing.assert_close(*by_mask)
    for cells in (torch.tensor([8, 0, 3]), torch.tensor([[8, 1], [0, 0], [3, 8]])):
        assert torch.equal(column(volumes, cells, rows), column(volumes[rows], cells))


def test_priority_map_spans_zero_to_one_and_is_zero_where_nothing_is_left():
    saliency = torch.zeros(2, 3, 3)
    saliency[0, 1, 2] = 0.01
    maps = priority_map(torch.full((2, 3, 3), 0.3), saliency)
    assert maps[0].min() == 0 and maps[0].max() == 1
    assert not maps[1].any()


@pytest.mark.parametrize("normalized", [False, True])
def test_inhibition_clears_glimpsed_cells_and_subtracts_the_mask_elsewhere(normalized):
    generator = torch.Generator().manual_seed(2)
    saliency, mask = torch.rand(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    glimpses = torch.tensor([[0, 5], [2, 2], [1, 3], [4, 0]])
    after = inhibit(saliency, mask * 0.5, glimpses, normalized)
    for b in range(4):
        expected = update(saliency[b].flatten().tolist(), (mask[b] * 0.5).flatten().tolist(), glimpses[b].tolist(), normalized)
        assert after[b].flatten().tolist() == pytest.approx(expected)

"""The fixed pieces of a generated `module.py`: each is printed only where something uses it. NEEDS says what each one calls."""

from __future__ import annotations

PARTS: dict[str, str] = {
    "whole": '''
def whole(name: str, numerator: int, denominator: int) -> int:
    """A size that is a quotient."""
    if numerator % denominator:
        raise ValueError(f"{name} = {numerator} / {denominator} is not a whole number")
    return numerator // denominator
''',
    "wide": '''
def wide(x: Tensor) -> Tensor:
    """At least float32, for sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
''',
    "count": '''
def count(n: int, like: Tensor) -> Tensor:
    """0, 1, ..., n - 1."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
''',
    "uniform": '''
def uniform(low: float | Tensor, high: float | Tensor, like: Tensor) -> Tensor:
    """One draw for each entry of `like`; neither end is ever drawn."""
    u = torch.rand_like(like, dtype=torch.promote_types(like.dtype, torch.float32)).clamp(6e-8, 1 - 6e-8)
    return low + (high - low) * u
''',
    "log_uniform": '''
def log_uniform(low: float | Tensor, high: float | Tensor, like: Tensor) -> Tensor:
    """Draws whose logarithm is uniform."""
    return low * torch.pow(high / low, uniform(0, 1, like))
''',
    "normal": '''
def normal(mean: float | Tensor, std: float | Tensor, like: Tensor) -> Tensor:
    """One draw for each entry of `like`."""
    return mean + std * torch.randn_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
''',
    "softplus_inverse": '''
def softplus_inverse(x: Tensor) -> Tensor:
    """The y with softplus(y) = x."""
    return x + torch.log(-torch.expm1(-x))
''',
    "softplus": '''
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own leaves the curve at 20, which float64 sees."""
    return F.softplus(x, threshold=40)
''',
    "lerp": '''
def lerp(a: float | Tensor, b: float | Tensor, w: Tensor) -> Tensor:
    """From a at w = 0 to b at w = 1."""
    return a + (b - a) * w
''',
    "l2norm": '''
def l2norm(x: Tensor, axis: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + eps)."""
    y = wide(x)
    return (y * torch.rsqrt(y.square().sum(axis, keepdim=True) + eps)).to(x.dtype)
''',
    "standardize": '''
def standardize(x: Tensor, axis: int | tuple[int, ...] = -1, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps)."""
    y = wide(x)
    y = y - y.mean(axis, keepdim=True)
    return (y * torch.rsqrt(y.square().mean(axis, keepdim=True) + eps)).to(x.dtype)
''',
    "segments": '''
def segments(cu_seqlens: Tensor, length: int) -> Tensor:
    """The number of the sequence that each packed token belongs to."""
    return torch.searchsorted(cu_seqlens[1:], torch.arange(length, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True)
''',
    "per_token": '''
def per_token(x: Tensor, length: int, cu_seqlens: Tensor | None) -> Tensor:
    """A value per sequence [N, ...], at each of its tokens."""
    return x[:, None] if cu_seqlens is None else x[segments(cu_seqlens, length)][None]
''',
    "positions_of": '''
def positions_of(x: Tensor, past: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each token's position in its sequence, `past` [N] tokens of which came before; and the next past."""
    token = torch.arange(x.shape[1], device=x.device)
    if cu_seqlens is None:
        return past[:, None] + token, past + x.shape[1]
    of = segments(cu_seqlens, x.shape[1])
    return (past[of] + token - cu_seqlens[of])[None], past + cu_seqlens.diff()
''',
    "joined": '''
def joined(x: Tensor, past: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | slice, Tensor]:
    """Each sequence's tokens after its `past` [N, n, ...]: the rows, where a token's n + 1 last values begin in them, the next past."""
    n, length, past = past.shape[1], x.shape[1], past.to(x.dtype)
    if cu_seqlens is None:
        rows = torch.cat([past, x], 1)
        return rows, slice(length), rows[:, length:]
    # Sequence i begins at row cu_seqlens[i] + n * i, with its past.
    begin = torch.arange(length, device=x.device) + n * segments(cu_seqlens, length)
    block = torch.arange(n, device=x.device) + n * torch.arange(past.shape[0], device=x.device)[:, None]
    rows = x.new_zeros(1, length + past.shape[0] * n, *x.shape[2:]).index_copy(1, begin + n, x)
    rows = rows.index_copy(1, (cu_seqlens[:-1, None] + block).flatten(), past.flatten(0, 1)[None])
    return rows, begin, rows[0, cu_seqlens[1:, None] + block]
''',
    "shift": '''
def shift(x: Tensor, past: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """x one token ago; `past` [N, 1, ...] before the first."""
    rows, begin, past = joined(x, past, cu_seqlens)
    return rows[:, begin], past
''',
    "first": '''
def first(x: Tensor, n: int, known: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The first n tokens of each sequence [N, n, ...], or `known` once an earlier call has seen them."""
    if known is not None:
        return known
    shortest = x.shape[1] if cu_seqlens is None else int(cu_seqlens.diff().min())
    if shortest < n:
        raise ValueError(f"the first call needs {n} tokens of each sequence, not {shortest}")
    return x[:, :n] if cu_seqlens is None else x[0, cu_seqlens[:-1, None] + torch.arange(n, device=x.device)]
''',
    "rope": '''
def rope(x: Tensor, position: Tensor, axis: int = -1) -> Tensor:
    """Turns the pairs (2i, 2i + 1) along the axis by position * 10000^(-2i/K)."""
    y = wide(x).movedim(axis, -1)
    pair = torch.arange(0, y.shape[-1], 2, device=x.device, dtype=y.dtype)
    angle = position.to(y.dtype)[(..., *[None] * (y.ndim - 2))] * torch.pow(10000.0, -pair / y.shape[-1])
    even, odd, cos, sin = y[..., 0::2], y[..., 1::2], angle.cos(), angle.sin()
    y = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return y.movedim(-1, axis).to(x.dtype)
''',
    "CausalConv": '''
class CausalConv(nn.Conv1d):
    """Each channel's weighted sum of its last `width` values; `past` [N, width - 1, channels] came before the first token."""

    def __init__(self, channels: int, width: int, bias: bool = False) -> None:
        super().__init__(channels, channels, width, groups=channels, bias=bias)

    def forward(self, x: Tensor, past: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        if not x.shape[1]:
            return x, past
        rows, begin, past = joined(x, past, cu_seqlens)
        y = F.conv1d(rows.transpose(1, 2), self.weight, self.bias, groups=self.groups).transpose(1, 2)
        return y[:, begin], past
''',
    "Headwise": '''
class Headwise(nn.Module):
    """A linear map inside each head."""

    def __init__(self, heads: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(heads, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("...hi,hoi->...ho", x, self.weight)
        return y if self.bias is None else y + self.bias
''',
    "RMSNorm": '''
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) along the axes, times a weight."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.axes, self.eps = axes, eps
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = wide(x)
        y = y * torch.rsqrt(y.square().mean(self.axes, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)
''',
    "LayerNorm": '''
class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) along the axes, times a weight."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.axes, self.eps = axes, eps
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (standardize(wide(x), self.axes, self.eps) * self.weight).to(x.dtype)
''',
    "GroupNorm": '''
class GroupNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) inside each head, with a weight and a bias for each channel."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.axes, self.eps = axes, eps
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (standardize(wide(x), self.axes, self.eps) * self.weight + self.bias).to(x.dtype)
''',
}  # fmt: skip

NEEDS: dict[str, tuple[str, ...]] = {
    "log_uniform": ("uniform",),
    "l2norm": ("wide",),
    "standardize": ("wide",),
    "per_token": ("segments",),
    "positions_of": ("segments",),
    "joined": ("segments",),
    "shift": ("joined",),
    "rope": ("wide",),
    "CausalConv": ("joined",),
    "RMSNorm": ("wide",),
    "LayerNorm": ("standardize", "wide"),
    "GroupNorm": ("standardize", "wide"),
}


def parts(used: set[str]) -> list[str]:
    """The texts of the used pieces and of all they call, in the table's order."""
    found, todo = set(used), list(used)
    while todo:
        new = [n for n in NEEDS.get(todo.pop(), ()) if n not in found]
        found.update(new)
        todo.extend(new)
    return [text.strip("\n") for name, text in PARTS.items() if name in found]

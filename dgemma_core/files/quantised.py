"""Weight-only quantisation: matrices as small whole numbers with scales; activations stay as they are.

Notable:
- int4: columns in groups of 32, one scale a group, 16 levels from −8 to 7; the number of a group
  that lies farthest from 0 is its −8, so that no level is wasted on a sign. int8: one scale a row,
  because that is what torch's CPU kernel reads, and 255 levels need no smaller groups;
- scales are bfloat16 (half the bytes of float32, all of its range); codes are rounded against the
  scale as it is stored, so that its own rounding adds no error;
- router, norms and scalars stay: together 0.04 % of the released weights, and a router's error
  sends tokens to other experts;
- the tied embedding is int8 in both schemes. In the released shape it is 738 million of 25.3
  billion weights: 1.48 GB as bfloat16, 0.74 GB as int8, 0.42 GB as int4. int8 halves what a step
  reads for the vocabulary, and the 0.3 GB that int4 would save more (of 14.6) are not needed for
  18 GB, while its error would stand in every logit and in every soft embedding unaveraged;
- products: torch's int8 kernel where it wins (`_kernel_serves`), elsewhere a slice of the matrix is
  turned back into numbers and multiplied as usual. torch's int4 kernel for the CPU wants an order
  of its own that cannot be read back, which long prompts and canvases need: there the plain product
  is the faster one.

Axes: R rows (outputs), K columns (inputs), G groups of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.errors import RequestError
from dgemma_core.experts import Experts
from dgemma_core.files import frozen

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma

GROUP = 32
"""Columns that share a scale in int4."""
SCALE = torch.bfloat16
SLICE = 2**23
"""Numbers that are turned back at a time."""

_KERNEL_ROWS = 16
_KERNEL_BLOCK = 64  # the kernel reads whole blocks: on other extents it reads past the end


@dataclass(frozen=True)
class Scheme:
    """Bits a weight of each kind of matrix."""

    name: str
    matrices: int
    """Attention, dense MLP, self-conditioning and experts."""
    embedding: int


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("int8", matrices=8, embedding=8),
    "int4": Scheme("int4", matrices=4, embedding=8),
}


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises RequestError where there is none."""
    if name not in SCHEMES:
        raise RequestError(f"quantize: expected {' or '.join(SCHEMES)}, found {name}; choose one")
    return SCHEMES[name]


Shape = tuple[int, ...]


def stored_shapes(shape: Shape, bits: int) -> tuple[Shape, Shape]:
    """Shapes of codes (int8) and scales of a matrix, or a stack of matrices, (…, R, K)."""
    *rows, columns = shape
    if bits == 8:
        return shape, (*rows, 1)
    groups = math.ceil(columns / GROUP)
    return (*rows, groups * GROUP // 2), (*rows, groups)


def stored_bytes(shape: Shape, bits: int) -> tuple[int, int]:
    """Bytes of codes and of scales of matrices (…, R, K)."""
    codes, scales = stored_shapes(shape, bits)
    return math.prod(codes), math.prod(scales) * SCALE.itemsize


def quantised(weight: Tensor, bits: int) -> Quantised:
    """weight (…, R, K) in any floating dtype, as codes and scales on its device."""
    encode = _encode_8 if bits == 8 else _encode_4
    return Quantised(*encode(weight.float()), columns=weight.shape[-1], bits=bits)


def _encode_8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = (weight.abs().amax(dim=-1, keepdim=True) / 127).to(SCALE)
    return _rounded(weight, scales.float(), -127, 127), scales


def _encode_4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A byte holds two columns, half a row apart: the first in its low bits.

    Codes are read back as sixteenfold (a mask reads the high bits so, a shift the low ones), and
    the stored scale is a sixteenth: both exact.
    """
    padding = -weight.shape[-1] % GROUP
    grouped = F.pad(weight, (0, padding)).unflatten(-1, (-1, GROUP))  # (…, R, G, 32)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    scales = (extreme / -128).to(SCALE)
    codes = _rounded(grouped, 16 * scales.float(), -8, 7).flatten(-2)
    first, second = codes.chunk(2, dim=-1)
    return (second << 4) | (first & 15), scales.squeeze(-1)


def _rounded(weight: Tensor, step: Tensor, least: int, most: int) -> Tensor:
    """weight in whole steps; where all weights of a group are 0, so is the step."""
    step = torch.where(step == 0, torch.ones_like(step), step)
    return (weight / step).round_().clamp_(least, most).to(torch.int8)


@dataclass(frozen=True)
class Quantised:
    """Matrices (…, R, K) as codes and scales. Indexing goes over the first axis, without a copy."""

    codes: Tensor
    """int8: (…, R, K), or in int4 (…, R, G·16)."""
    scales: Tensor
    """bfloat16 (…, R, G): the step of a group, in int4 its sixteenth."""
    columns: int
    bits: int

    @property
    def shape(self) -> Shape:
        return (*self.codes.shape[:-1], self.columns)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int | slice | Tensor) -> Quantised:
        return Quantised(self.codes[index], self.scales[index], self.columns, self.bits)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The numbers (…, R, K) that the codes stand for, rounded to `dtype`."""
        scales = self.scales.to(dtype)
        if self.bits == 8:
            return self.codes.to(dtype).mul_(scales)
        *rows, half = self.codes.shape
        halves = torch.empty(*rows, 2, half, dtype=dtype, device=self.codes.device)
        halves[..., 0, :] = self.codes << 4
        halves[..., 1, :] = self.codes & -16
        numbers = halves.view(*rows, -1, GROUP).mul_(scales.unsqueeze(-1)).flatten(-2)
        return numbers[..., : self.columns]

    def linear(self, x: Tensor) -> Tensor:
        """x (…, K) → (…, R), of one matrix."""
        if x.requires_grad and torch.is_grad_enabled():
            return frozen.product(x, self)
        if _kernel_serves(x, self):
            flat = x.reshape(-1, self.columns).contiguous()
            product = torch._weight_int8pack_mm(flat, self.codes, self.scales.squeeze(-1))
            return product.view(*x.shape[:-1], -1)
        found = [F.linear(x, part.dequantize(x.dtype)) for part in self.slices()]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def slices(self) -> Iterator[Quantised]:
        """The rows of one matrix, so many at a time as are turned back at once."""
        count = max(1, SLICE // self.columns)
        return (self[start : start + count] for start in range(0, len(self), count))


def _kernel_serves(x: Tensor, weight: Quantised) -> bool:
    """Whether torch's product with int8 weights is right and faster: in bfloat16, for a few tokens.

    In float32 it is scalar code, and from some 20 tokens on the plain product wins in bfloat16 too
    (both measured); there the plain one runs.
    """
    return (
        weight.bits == 8
        and x.device.type == "cpu"
        and x.dtype == weight.scales.dtype == torch.bfloat16
        and x.numel() <= _KERNEL_ROWS * weight.columns
        and weight.codes.is_contiguous()
        and weight.columns % _KERNEL_BLOCK == 0
        and len(weight) % _KERNEL_BLOCK == 0
    )


# --- modules


class Holder(nn.Module):
    """A module whose matrices are codes and scales: two buffers each, empty until `fill`."""

    def __init__(self, shapes: Mapping[str, Shape], bits: int) -> None:
        nn.Module.__init__(self)  # of a class that is also `Experts`, whose matrices are not wanted
        self.bits = bits
        self.columns = {name: shape[-1] for name, shape in shapes.items()}
        for name, shape in shapes.items():
            codes, scales = stored_shapes(shape, bits)
            empty = torch.empty(codes, dtype=torch.int8, device="meta")
            self.register_buffer(f"{name}_codes", empty)
            self.register_buffer(f"{name}_scales", torch.empty(scales, dtype=SCALE, device="meta"))

    def matrix(self, name: str) -> Quantised:
        """The matrix that the plain module holds as the parameter `name`."""
        codes, scales = self.get_buffer(f"{name}_codes"), self.get_buffer(f"{name}_scales")
        return Quantised(codes, scales, self.columns[name], self.bits)

    def fill(self, name: str, rows: Iterable[Tensor], device: torch.device) -> None:
        """Quantises a matrix given as blocks of its rows (r, K), a stack's one after the other."""
        empty = self.matrix(name)
        codes, scales = (torch.empty_like(t, device=device) for t in (empty.codes, empty.scales))
        start = 0
        for block in rows:
            part = quantised(block.to(device), self.bits)
            codes.flatten(0, -2)[start : start + len(block)] = part.codes
            scales.flatten(0, -2)[start : start + len(block)] = part.scales
            start += len(block)
        setattr(self, f"{name}_codes", codes)
        setattr(self, f"{name}_scales", scales)


class QuantisedLinear(Holder):
    """A projection without bias."""

    def __init__(self, plain: nn.Linear, bits: int) -> None:
        super().__init__({"weight": tuple(plain.weight.shape)}, bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix("weight").linear(x)


class QuantisedEmbedding(Holder):
    """nn.Embedding; the tied head reads `weight`."""

    def __init__(self, plain: nn.Embedding, bits: int) -> None:
        super().__init__({"weight": tuple(plain.weight.shape)}, bits)

    @property
    def weight(self) -> Quantised:
        return self.matrix("weight")

    def forward(self, ids: Tensor) -> Tensor:
        """ids (…) → rows (…, D), float32."""
        return self.weight[ids].dequantize(torch.float32)


class QuantisedExperts(Holder, Experts):
    """`Experts`; of a step only the experts that tokens go to are turned back, one at a time."""

    def __init__(self, plain: Experts, bits: int) -> None:
        shapes = {name: tuple(matrix.shape) for name, matrix in plain.named_parameters()}
        Holder.__init__(self, shapes, bits)
        self.count = plain.count

    def product(self, name: str, index: int, x: Tensor) -> Tensor:
        return self.matrix(name)[index].linear(x)


class Kept(nn.Parameter):
    """What stays as it is in a quantised model, whose training it refuses: no gradient moves codes."""

    def requires_grad_(self, mode: bool = True) -> Kept:
        """Raises RequestError unless `mode` is False."""
        if mode:
            raise RequestError("a quantised model cannot be trained: load it without quantize")
        return self


Parts = Iterable[tuple[str, Iterable[Tensor]]]
"""Of each parameter of the plain model the name, and its rows (last axis) in blocks (r, K)."""


def fill(
    model: DiffusionGemma, to: Scheme, parts: Parts, dtype: torch.dtype, device: torch.device
) -> None:
    """Turns a model on the meta device into a quantised one, part by part, in whatever order.

    The result and one block are all that is held. dtype: of what stays as it is.
    """
    waiting = convert(model, to)
    for name, blocks in parts:
        if name in waiting:
            holder, own = waiting[name]
            holder.fill(own, blocks, device)
            continue
        tensor = torch.cat(list(blocks)).view(model.get_parameter(name).shape)
        module, _, attribute = name.rpartition(".")
        kept = Kept(tensor.to(device=device, dtype=dtype), requires_grad=False)
        setattr(model.get_submodule(module), attribute, kept)
    model.quantized = to.name


def convert(model: nn.Module, to: Scheme) -> dict[str, tuple[Holder, str]]:
    """Puts empty holders in the place of a model's matrices.

    Returns for each parameter that is gone the holder, and its name there, for `Holder.fill`.
    """
    waiting: dict[str, tuple[Holder, str]] = {}
    for path, holder in list(_holders(model, to)):
        model.set_submodule(path, holder, strict=True)
        for name in holder.columns:
            waiting[f"{path}.{name}"] = holder, name
    return waiting


def _holders(model: nn.Module, to: Scheme) -> Iterator[tuple[str, Holder]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            yield path, QuantisedEmbedding(module, to.embedding)
        elif isinstance(module, Experts):
            yield path, QuantisedExperts(module, to.matrices)
        elif isinstance(module, nn.Linear) and not path.endswith("router.proj"):
            yield path, QuantisedLinear(module, to.matrices)


def held_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers of every parameter of the plain model, and the bytes that they take here.

    A quantised model counts as many numbers as the plain one that it was.
    """
    sizes = {name: (value.numel(), value.nbytes) for name, value in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, Holder):
            for name in module.columns:
                matrix = module.matrix(name)
                sizes[f"{path}.{name}"] = math.prod(matrix.shape), matrix.nbytes
    return sizes


def stored_sizes(model: nn.Module, to: Scheme, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes of weights and of scales of every parameter of a plain model, once it is quantised.

    itemsize: bytes of a number that stays as it is.
    """
    bits = {
        f"{path}.{name}": holder.bits
        for path, holder in _holders(model, to)
        for name in holder.columns
    }
    return {
        name: stored_bytes(tuple(parameter.shape), bits[name])
        if name in bits
        else (parameter.numel() * itemsize, 0)
        for name, parameter in model.named_parameters()
    }

"""Write the bf16 GGUF of a quantised one: the weights that the checkpoint of `make real-models` has.

    python benchmarks/peers/bf16_gguf.py models/gguf/NAME.gguf [--output models/gguf/NAME-bf16.gguf]

Matrices are dequantised and rounded to bf16; vectors keep their precision. The output appears in one
piece when it is done; one that is there is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

# Written by the writer itself, or no longer true.
_OWN_FIELDS = ("general.architecture", "general.file_type", "general.quantization_version")


def output_of(source: Path) -> Path:
    """Where the bf16 file of a quantised one stands by default."""
    return source.with_name(f"{source.stem}-bf16.gguf")


def write_bf16(source: Path, output: Path) -> None:
    """Dequantise every tensor; metadata, the tokenizer's among them, stay as they are."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise SystemExit(f"{source} must name general.architecture; it is no model")
    partial = output.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, architecture.contents())
    _copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    kinds = []
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        is_matrix = len(shape) > 1
        kind = gguf.GGMLQuantizationType.BF16 if is_matrix else gguf.GGMLQuantizationType.F32
        num_bytes = int(np.prod(shape)) * (2 if is_matrix else 4)
        kinds.append(kind)
        writer.add_tensor_info(
            tensor.name,
            gguf.quants.quant_shape_to_byte_shape(shape, kind) if is_matrix else shape,
            np.dtype(np.uint8) if is_matrix else np.dtype(np.float32),
            num_bytes,
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(reader.tensors, kinds, strict=True):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        data = gguf.quants.quantize(values, kind)
        writer.write_tensor_data(np.ascontiguousarray(data))
    writer.close()
    partial.replace(output)


def _copy_fields(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name in _OWN_FIELDS or field.name.startswith("GGUF."):
            continue
        value, kind = field.contents(), field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, kind, sub_type=inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    output = args.output or output_of(args.source)
    if not output.exists():
        write_bf16(args.source, output)
    print(f"{output}: {output.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

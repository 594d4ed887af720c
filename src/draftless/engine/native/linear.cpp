// x @ weight.T + bias for few rows, on weights that lie in the order in which they are read.
//
// Few rows are bound by how fast the weights can be read, so they are read once, as one stream, by a loop of
// our own. Many rows on a CPU with AMX go through torch's brgemm. What both save is the set-up of a oneDNN
// primitive in every call, which takes longer than the product itself on small models (docs/adr/0007).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

// Inductor turns this off for code of its own, which says itself what to vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")
#endif

namespace {

using T = at::BFloat16;

constexpr int64_t kOutputs = 64;  // per block of the weight
constexpr int64_t kRows = 32;     // at once, so that the sums stay in the first cache
constexpr int64_t kStreamed = 6;  // rows whose sums fit the registers

void in_blocks(const T* x, int64_t rows, int64_t in, const T* weight, float* sums) {
  at::native::cpublas::brgemm(rows, kOutputs, in, in, kOutputs, kOutputs, false, x, weight, sums, true);
}

#ifdef __AVX512BF16__

// Sums of `kCount` rows with one block of the weight [pairs, kOutputs, 2]. The order of a sum does not depend
// on the number of rows.
template <int kCount>
void stream(const T* x, int64_t in, const T* weight, float* sums) {
  constexpr int kVectors = kOutputs / 16;
  __m512 total[kCount][kVectors];
  for (auto& row : total) {
    for (auto& one : row) one = _mm512_setzero_ps();
  }
  for (int64_t at = 0; at < in; at += 2, weight += 2 * kOutputs) {
    __m512bh factor[kVectors];
    for (int i = 0; i < kVectors; ++i) factor[i] = (__m512bh)_mm512_loadu_si512(weight + 32 * i);
    for (int row = 0; row < kCount; ++row) {
      int pair;
      std::memcpy(&pair, x + row * in + at, sizeof pair);
      const auto both = (__m512bh)_mm512_set1_epi32(pair);
      for (int i = 0; i < kVectors; ++i) total[row][i] = _mm512_dpbf16_ps(total[row][i], both, factor[i]);
    }
  }
  for (int row = 0; row < kCount; ++row) {
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(sums + row * kOutputs + 16 * i, total[row][i]);
  }
}

void multiply(const T* x, int64_t rows, int64_t in, const T* weight, float* sums) {
#ifdef __AMX_BF16__
  if (rows > kStreamed) return in_blocks(x, rows, in, weight, sums);
#endif
  using Stream = void (*)(const T*, int64_t, const T*, float*);
  constexpr Stream kStreams[kStreamed] = {stream<1>, stream<2>, stream<3>, stream<4>, stream<5>, stream<6>};
  for (int64_t parts = (rows + kStreamed - 1) / kStreamed; parts > 0; --parts) {
    const int64_t count = (rows + parts - 1) / parts;  // evenly: a part of one row reads as much as one of six
    kStreams[count - 1](x, in, weight, sums);
    x += count * in;
    sums += count * kOutputs;
    rows -= count;
  }
}

#else

void multiply(const T* x, int64_t rows, int64_t in, const T* weight, float* sums) {
  in_blocks(x, rows, in, weight, sums);
}

#endif

struct Product {
  const T* x;          // [rows, in]
  const float* scale;  // [width], or null: what the sums are multiplied with
  const T* bias;       // [width], or null
  T* out;              // [rows, width]
  int64_t rows, in, width;

  void block(const T* weight, int64_t first) const {  // weight [in / 2, kOutputs, 2]
    alignas(64) float sums[kRows * kOutputs];
    const int64_t count = std::min(kOutputs, width - first);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t num_rows = std::min(kRows, rows - row);
      multiply(x + row * in, num_rows, in, weight, sums);
      for (int64_t i = 0; i < num_rows; ++i) {
        store(sums + i * kOutputs, out + (row + i) * width + first, first, count);
      }
    }
  }

  void store(float* sums, T* to, int64_t first, int64_t count) const {
    if (scale != nullptr) {
      for (int64_t j = 0; j < count; ++j) sums[j] *= scale[first + j];
    }
    if (bias != nullptr) {
      for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<float>(bias[first + j]);
    }
    for (int64_t j = 0; j < count; ++j) to[j] = static_cast<T>(sums[j]);
  }
};

const T* as_product_type(const T* weight, std::vector<T>&, int64_t) { return weight; }

// An int8 is exact in a bfloat16, which is the upper half of a float: no rounding, so it vectorises.
const T* as_product_type(const int8_t* weight, std::vector<T>& room, int64_t size) {
  room.resize(size);
  auto* bits = reinterpret_cast<uint16_t*>(room.data());
  for (int64_t i = 0; i < size; ++i) {
    bits[i] = static_cast<uint16_t>(c10::bit_cast<uint32_t>(static_cast<float>(weight[i])) >> 16);
  }
  return room.data();
}

template <typename Weight>
void all_blocks(const Product& product, const at::Tensor& weight) {
  const Weight* data = weight.const_data_ptr<Weight>();
  const int64_t size = product.in * kOutputs;
  at::parallel_for(0, weight.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> room;
    for (int64_t index = begin; index < end; ++index) {
      product.block(as_product_type(data + index * size, room, size), index * kOutputs);
    }
    at::native::cpublas::brgemm_release(true);
  });
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& scale,
                  const std::optional<at::Tensor>& bias, int64_t width) {
  const at::Tensor input = x.contiguous();
  auto sizes = input.sizes().vec();
  const int64_t in = sizes.back();
  sizes.back() = width;
  at::Tensor out = at::empty(sizes, input.options());
  const Product product{input.const_data_ptr<T>(),
                        scale.has_value() ? scale->const_data_ptr<float>() : nullptr,
                        bias.has_value() ? bias->const_data_ptr<T>() : nullptr,
                        out.data_ptr<T>(),
                        input.numel() / in,
                        in,
                        width};
  if (weight.scalar_type() == at::kChar) {
    all_blocks<int8_t>(product, weight);
  } else {
    all_blocks<T>(product, weight);
  }
  return out;
}

at::Tensor linear_shape(const at::Tensor& x, const at::Tensor&, const std::optional<at::Tensor>&,
                        const std::optional<at::Tensor>&, int64_t width) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = width;
  return x.new_empty_symint(sizes);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, int width) -> Tensor");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) { library.impl("linear", &linear); }

TORCH_LIBRARY_IMPL(draftless_cpu, Meta, library) { library.impl("linear", &linear_shape); }

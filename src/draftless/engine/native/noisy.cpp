// The largest of logits / temperature + keyed Gumbel noise per row (see `draftless.noise`).
//
// The noise of a token is -log(-log(u)), two logarithms, and -log(u) >= 1 - u, so that the noise is at
// most -log(1 - u). A chord of the logarithm over the mantissa bounds that by the bits of 1 - u read as a
// fixed-point number. So all tokens get a bound, by vector instructions, and only those whose bound
// reaches the best scores so far, some dozens of a vocabulary, get their noise.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "keyed_noise.h"

// Inductor turns this off for code of its own, which says itself what to vectorise.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")
#endif

namespace {

constexpr double kLog2 = 0.693147180559945309, kLowest = -std::numeric_limits<double>::infinity();
constexpr int64_t kBlock = 256;

struct Best {
  std::vector<std::pair<double, int64_t>> found;  // the largest first; of equals the lowest id
  double least = kLowest;

  explicit Best(int64_t count) : found(count, {kLowest, 0}) {}

  void offer(double score, int64_t id) {
    if (!(score > least)) return;
    size_t place = found.size() - 1;
    for (; place > 0 && found[place - 1].first < score; --place) found[place] = found[place - 1];
    found[place] = {score, id};
    least = found.back().first;
  }
};

// Below a score by more than rounding takes from a bound.
inline float bar_below(double score) { return static_cast<float>(score - 1e-3 - 1e-6 * std::abs(score)); }

template <typename T>
void find(const T* logits, int64_t width, float temperature, uint64_t stream, Best& best) {
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t size = std::min(kBlock, width - first);
    double most[kBlock];
    float scores[kBlock], bounds[kBlock];
    for (int64_t i = 0; i < size; ++i) {
      // 1 - u has the bits of u's, complemented.
      const double rest = uniform(~mix(stream + static_cast<uint64_t>(first + i + 1) * kGolden));
      int64_t raw;
      std::memcpy(&raw, &rest, sizeof raw);
      most[i] = kLog2 * (1023.0 - static_cast<double>(raw) * 0x1p-52);
    }
    for (int64_t i = 0; i < size; ++i) scores[i] = static_cast<float>(logits[first + i]) / temperature;
    for (int64_t i = 0; i < size; ++i) bounds[i] = scores[i] + static_cast<float>(most[i]);
    const float bar = bar_below(best.least);
    int is_any = 0;
    for (int64_t i = 0; i < size; ++i) is_any |= bounds[i] >= bar;
    if (!is_any) continue;
    for (int64_t i = 0; i < size; ++i) {
      if (bounds[i] < bar) continue;
      best.offer(static_cast<double>(scores[i]) + noise_of(stream, first + i), first + i);
    }
  }
}

std::tuple<at::Tensor, at::Tensor> likeliest(const at::Tensor& logits, at::IntArrayRef rows, at::IntArrayRef streams,
                                             double temperature, int64_t count) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1 && count > 0 && count <= logits.size(1) &&
              rows.size() == streams.size());
  const int64_t num_rows = rows.size(), width = logits.size(1), stride = logits.stride(0);
  at::Tensor ids = at::empty({num_rows, count}, logits.options().dtype(at::kLong));
  at::Tensor scores = at::empty({num_rows, count}, logits.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "likeliest_under_noise", [&] {
    const scalar_t* data = logits.const_data_ptr<scalar_t>();
    for (int64_t place = 0; place < num_rows; ++place) {
      TORCH_CHECK_INDEX(rows[place] >= 0 && rows[place] < logits.size(0), "no row ", rows[place]);
      Best best(count);
      find(data + rows[place] * stride, width, static_cast<float>(temperature),
           static_cast<uint64_t>(streams[place]), best);
      for (int64_t i = 0; i < count; ++i) {
        scores.data_ptr<double>()[place * count + i] = best.found[i].first;
        ids.data_ptr<int64_t>()[place * count + i] = best.found[i].second;
      }
    }
  });
  return {ids, scores};
}

// The single largest of one row: what the target says.
int64_t draw(const at::Tensor& logits, int64_t row, int64_t stream, double temperature) {
  TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1);
  TORCH_CHECK_INDEX(row >= 0 && row < logits.size(0), "no row ", row);
  Best best(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, logits.scalar_type(), "draw_under_noise", [&] {
    find(logits.const_data_ptr<scalar_t>() + row * logits.stride(0), logits.size(1), static_cast<float>(temperature),
         static_cast<uint64_t>(stream), best);
  });
  return best.found[0].second;
}

// The same among a handful of tokens.
std::tuple<std::vector<int64_t>, std::vector<double>> ranked(at::IntArrayRef ids, at::ArrayRef<double> logits,
                                                             int64_t stream, double temperature, int64_t count) {
  TORCH_CHECK(ids.size() == logits.size() && count > 0);
  const size_t num_ranked = std::min<size_t>(count, ids.size());
  std::vector<std::pair<double, int64_t>> order;
  for (size_t i = 0; i < ids.size(); ++i) {
    order.emplace_back(-(logits[i] / temperature + noise_of(static_cast<uint64_t>(stream), ids[i])), ids[i]);
  }
  std::partial_sort(order.begin(), order.begin() + num_ranked, order.end());
  std::vector<int64_t> best;
  std::vector<double> scores;
  for (size_t i = 0; i < num_ranked; ++i) {
    best.push_back(order[i].second);
    scores.push_back(-order[i].first);
  }
  return {best, scores};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def(
      "likeliest_under_noise(Tensor logits, int[] rows, int[] streams, float temperature, int count)"
      " -> (Tensor, Tensor)");
  library.def("draw_under_noise(Tensor logits, int row, int stream, float temperature) -> int");
  library.def(
      "ranked_under_noise(int[] ids, float[] logits, int stream, float temperature, int count) -> (int[], float[])",
      &ranked);
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) {
  library.impl("likeliest_under_noise", &likeliest);
  library.impl("draw_under_noise", &draw);
}

// The largest of logits / temperature + keyed Gumbel noise per row (see `draftless.noise`).
//
// The noise of a token is -log(-log(u)), two logarithms, and -log(u) >= 1 - u, so that the noise is at
// most -log(1 - u). A chord of the logarithm over the mantissa bounds that by the bits of 1 - u read as a
// fixed-point number. So all tokens get a bound, by vector instructions, and only those whose bound
// reaches the best scores so far, some dozens of a vocabulary, get their noise.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
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
void find_under_noise(const T* logits, int64_t width, double temperature_, uint64_t stream, Best& best) {
  const float temperature = static_cast<float>(temperature_);
  float bar = bar_below(best.least);
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t size = std::min(kBlock, width - first);
    uint32_t rests[kBlock];
    float scores[kBlock], bounds[kBlock];
    // 1 - u has the bits of u's, complemented; 32 of them, as 24 and an exponent, bound it well enough.
    for (int64_t i = 0; i < size; ++i) {
      rests[i] = static_cast<uint32_t>(~mix(stream + static_cast<uint64_t>(first + i + 1) * kGolden) >> 32);
    }
    for (int64_t i = 0; i < size; ++i) {
      const float rest = static_cast<float>(rests[i]);
      int32_t raw;
      std::memcpy(&raw, &rest, sizeof raw);
      scores[i] = static_cast<float>(logits[first + i]) / temperature;
      bounds[i] = scores[i] + static_cast<float>(kLog2) * (127.0f + 32.0f - static_cast<float>(raw) * 0x1p-23f);
    }
    int is_any = 0;
    for (int64_t i = 0; i < size; ++i) is_any |= bounds[i] >= bar;
    if (!is_any) continue;
    for (int64_t i = 0; i < size; ++i) {
      if (bounds[i] < bar) continue;
      best.offer(static_cast<double>(scores[i]) + noise_of(stream, first + i), first + i);
      bar = bar_below(best.least);
    }
  }
}

}  // namespace

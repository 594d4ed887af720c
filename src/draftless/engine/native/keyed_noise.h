// Keyed Gumbel noise (see `draftless.noise`).

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15, kBitsOfOne = 0x3FF0000000000000;

inline uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

// What seed, sample (both in `noise`) and position bring to the bits.
inline uint64_t stream_of(uint64_t noise, int64_t position) { return mix(noise + static_cast<uint64_t>(position)); }

// (bits + 0.5) / 2^52 of the upper 52 bits: strictly inside (0, 1), and exact.
inline double uniform(uint64_t bits) {
  const uint64_t raw = (bits >> 12) | kBitsOfOne;
  double value;
  std::memcpy(&value, &raw, sizeof value);
  return value - (1.0 - 0x1p-53);
}

inline double noise_of(uint64_t stream, int64_t id) {
  return -std::log(-std::log(uniform(mix(stream + static_cast<uint64_t>(id + 1) * kGolden))));
}

}  // namespace

// Attention of few queries over what is cached, in bfloat16: the query heads of a KV head side by side.
//
// Keys are taken as they lie in the cache and multiplied with all queries of their head at once, so they are
// read once; the softmax runs along 16 queries per vector. For a handful of queries a library's general kernel
// spends most of its time on what it does for many.
//
// Sums go from key to key, and a hidden key adds an exact zero. So a node of a tree gets the bits that plain
// decoding gets, whatever stands beside it and wherever in the cache its ancestors lie.

#ifndef __AVX512BF16__
#error "attention.cpp needs AVX512-BF16"
#endif

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using T = at::BFloat16;

constexpr int64_t kLanes = 16;
constexpr int kSums = 8;            // vectors of sums at once: enough to hide what one takes
constexpr int64_t kWork = 1 << 13;  // scores that are worth a thread
constexpr double kLog2E = 1.4426950408889634;

// 2^x to a few units in the last place; 0 from -120 down.
inline __m512 exp2(__m512 x) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-120.0f), _CMP_GT_OQ);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);  // within -1/2 and 1/2: the series of e^(rest ln 2)
  __m512 value = _mm512_set1_ps(1.5403530e-4f);
  for (const float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(factor));
  }
  return _mm512_maskz_scalef_ps(counts, value, whole);
}

inline int pair_at(const T* data) {
  int pair;
  std::memcpy(&pair, data, sizeof pair);
  return pair;
}

inline __m512bh broadcast(int pair) { return (__m512bh)_mm512_set1_epi32(pair); }

inline __m512 widened(const T* data) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store(T* data, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(data), (__m256i)_mm512_cvtneps_pbh(values));
}

inline __m512bh load(const T* data) { return (__m512bh)_mm512_loadu_si512(data); }

// One KV head of one row: its queries, padded to whole vectors, and the room to work in.
struct Head {
  int64_t num_queries, head_dim, lanes;
  float *scores, *total;  // [C, lanes]; [lanes]
  T* queries;             // [D / 2, lanes, 2]

  Head(int64_t num_queries_, int64_t head_dim_, int64_t context)
      : num_queries(num_queries_), head_dim(head_dim_), lanes((num_queries_ + kLanes - 1) / kLanes * kLanes) {
    static thread_local std::vector<float> room;  // kept: to fill it with zeros takes as long as to use it
    const size_t size = (context + 1 + head_dim / 2) * lanes;
    if (room.size() < size) room.resize(size);
    scores = room.data();
    total = scores + context * lanes;
    queries = reinterpret_cast<T*>(total + lanes);
  }

  void begin() { std::memset(queries, 0, head_dim * lanes * sizeof(T)); }

  void set_query(int64_t place, const T* query) {
    for (int64_t at = 0; at < head_dim; at += 2) {
      std::memcpy(queries + (at / 2 * lanes + place) * 2, query + at, 2 * sizeof(T));
    }
  }

  // Scores of keys [count, D], times `scale`.
  void score(const T* keys, int64_t count, float scale) {
    for (int64_t lane = 0; lane < lanes; lane += 2 * kLanes) {
      if (lane + kLanes < lanes) {
        score_vectors<2>(keys, count, scale, lane);
      } else {
        score_vectors<1>(keys, count, scale, lane);
      }
    }
  }

  template <int kVectors>
  void score_vectors(const T* keys, int64_t count, float scale, int64_t lane) {
    constexpr int kKeys = kSums / kVectors;
    for (int64_t key = 0; key < count; key += kKeys) {
      const int64_t num_keys = std::min<int64_t>(kKeys, count - key);
      const T* rows[kKeys];
      for (int64_t i = 0; i < kKeys; ++i) rows[i] = keys + (key + std::min(i, num_keys - 1)) * head_dim;
      __m512 sum[kKeys][kVectors];
      for (auto& of_key : sum) {
        for (auto& one : of_key) one = _mm512_setzero_ps();
      }
      for (int64_t at = 0; at < head_dim; at += 2) {
        __m512bh both[kVectors];
        for (int v = 0; v < kVectors; ++v) both[v] = load(queries + (at / 2 * lanes + lane + v * kLanes) * 2);
        for (int i = 0; i < kKeys; ++i) {
          const __m512bh of_key = broadcast(pair_at(rows[i] + at));
          for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], both[v], of_key);
        }
      }
      for (int64_t i = 0; i < num_keys; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          _mm512_storeu_ps(scores + (key + i) * lanes + lane + v * kLanes,
                           _mm512_mul_ps(sum[i][v], _mm512_set1_ps(scale)));
        }
      }
    }
  }

  // Adds a query's row of the mask, which is mostly zeros.
  void add_mask(int64_t query, const T* mask, int64_t count) {
    for (int64_t first = 0; first < count; first += 32) {
      const __mmask32 there = count - first >= 32 ? ~0u : (1u << (count - first)) - 1;
      const __m512i bits = _mm512_maskz_loadu_epi16(there, mask + first);
      for (uint32_t set = _mm512_test_epi16_mask(bits, bits); set != 0; set &= set - 1) {
        const int64_t key = first + __builtin_ctz(set);
        scores[key * lanes + query] += static_cast<float>(mask[key]) * static_cast<float>(kLog2E);
      }
    }
  }

  // Scores to weights.
  void weigh(int64_t count) {
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
      float* first = scores + lane;
      __m512 most = _mm512_loadu_ps(first), sum = _mm512_setzero_ps();
      for (int64_t key = 1; key < count; ++key) most = _mm512_max_ps(most, _mm512_loadu_ps(first + key * lanes));
      for (int64_t key = 0; key < count; ++key) {
        const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(first + key * lanes), most));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(first + key * lanes, weight);
      }
      _mm512_storeu_ps(total + lane, sum);
    }
  }

  // The weighted values of some queries: `to[i]` is where the i-th one's go.
  template <int kCount>
  void add_values(const T* values, int64_t count, int64_t query, T* const* to) const {
    for (int64_t at = 0; at < head_dim; at += 2 * kLanes) {
      __m512 low[kCount], high[kCount];
      for (int i = 0; i < kCount; ++i) low[i] = high[i] = _mm512_setzero_ps();
      for (int64_t key = 0; key < count; ++key) {
        const __m512 first = widened(values + key * head_dim + at);
        const __m512 second = widened(values + key * head_dim + at + kLanes);
        for (int i = 0; i < kCount; ++i) {
          const __m512 weight = _mm512_set1_ps(scores[key * lanes + query + i]);
          low[i] = _mm512_fmadd_ps(weight, first, low[i]);
          high[i] = _mm512_fmadd_ps(weight, second, high[i]);
        }
      }
      for (int i = 0; i < kCount && query + i < num_queries; ++i) {
        const __m512 share = _mm512_set1_ps(1.0f / total[query + i]);
        store(to[i] + at, _mm512_mul_ps(low[i], share));
        store(to[i] + at + kLanes, _mm512_mul_ps(high[i], share));
      }
    }
  }
};

// [R, W, Hq, D] of queries [R, Hq, W, D], keys and values [R, Hkv, C, D] and a mask [R or 1, 1, G * W, C].
at::Tensor attention(const at::Tensor& given, const at::Tensor& key, const at::Tensor& value, const at::Tensor& mask,
                     double scaling) {
  const at::Tensor query = given.stride(3) == 1 ? given : given.contiguous();
  const int64_t rows = query.size(0), heads = query.size(1), width = query.size(2), dim = query.size(3);
  const int64_t kv_heads = key.size(1), context = key.size(2), groups = heads / kv_heads;
  TORCH_CHECK(dim % 32 == 0 && key.stride(3) == 1 && key.stride(2) == dim &&
              value.stride(3) == 1 && value.stride(2) == dim && mask.is_contiguous() &&
              mask.size(2) == groups * width && mask.size(3) == context);
  at::Tensor out = at::empty({rows, width, heads, dim}, query.options());
  const T *queries = query.const_data_ptr<T>(), *masks = mask.const_data_ptr<T>();
  const int64_t at_least = (kWork + groups * width * context - 1) / (groups * width * context);
  at::parallel_for(0, rows * kv_heads, at_least, [&](int64_t begin, int64_t end) {
    Head head(groups * width, dim, context);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index / kv_heads, kv_head = index % kv_heads;
      const T* keys = key.const_data_ptr<T>() + row * key.stride(0) + kv_head * key.stride(1);
      const T* values = value.const_data_ptr<T>() + row * value.stride(0) + kv_head * value.stride(1);
      const T* mask_row = masks + (mask.size(0) > 1 ? row : 0) * groups * width * context;
      const auto head_of = [&](int64_t place) { return kv_head * groups + place / width; };
      head.begin();
      for (int64_t place = 0; place < head.num_queries; ++place) {
        head.set_query(place, queries + row * query.stride(0) + head_of(place) * query.stride(1) +
                                  place % width * query.stride(2));
      }
      head.score(keys, context, static_cast<float>(scaling * kLog2E));
      for (int64_t place = 0; place < head.num_queries; ++place) {
        head.add_mask(place, mask_row + place * context, context);
      }
      head.weigh(context);
      for (int64_t first = 0; first < head.num_queries; first += kSums) {
        const int64_t count = std::min<int64_t>(kSums, head.num_queries - first);
        T* to[kSums];
        for (int64_t i = 0; i < count; ++i) {
          const int64_t place = first + i;
          to[i] = out.data_ptr<T>() + ((row * width + place % width) * heads + head_of(place)) * dim;
        }
        if (count > kSums / 2) {
          head.add_values<kSums>(values, context, first, to);
        } else {
          head.add_values<kSums / 2>(values, context, first, to);
        }
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(draftless_cpu, library) {
  library.def("attention(Tensor query, Tensor key, Tensor value, Tensor mask, float scaling) -> Tensor");
}

TORCH_LIBRARY_IMPL(draftless_cpu, CPU, library) { library.impl("attention", &attention); }

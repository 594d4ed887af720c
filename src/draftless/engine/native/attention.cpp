// Attention of few queries over what is cached, in bfloat16: the query heads of a KV head side by side.
//
// Keys are taken as they lie in the cache and multiplied with all queries of their head at once, so they are
// read once; the softmax runs along 16 queries per vector, over parts of the context with running maxima
// (Milakov and Gimelshein, arXiv 1805.02867). For a handful of queries a library's general kernel spends most
// of its time on what it does for many.

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
#include <limits>
#include <vector>

namespace {

using T = at::BFloat16;

constexpr int64_t kLanes = 16, kPart = 256;  // keys at once
constexpr int kSums = 8;                     // vectors of sums at once: enough to hide what one takes
constexpr int64_t kWork = 1 << 13;           // scores that are worth a thread
constexpr float kNothing = -1e30f;           // a maximum of no key
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

inline __m512bh load(const T* data) { return (__m512bh)_mm512_loadu_si512(data); }

// One KV head of one row: its queries, padded to whole vectors, and the room to work in.
struct Head {
  int64_t num_queries, head_dim, lanes, vectors;
  float *scores, *sums;     // [part, lanes]; [lanes, D]
  float *highest, *total;   // [lanes] each
  int* weights;             // [part / 2, lanes], of pairs of keys
  T *queries, *mixed;       // [D / 2, lanes, 2]; values [part / 2, D, 2]

  Head(int64_t num_queries_, int64_t head_dim_)
      : num_queries(num_queries_),
        head_dim(head_dim_),
        lanes((num_queries_ + kLanes - 1) / kLanes * kLanes),
        vectors(lanes / kLanes) {
    const int64_t sizes[] = {kPart * lanes, lanes * head_dim,     lanes,               lanes,
                             kPart / 2 * lanes, head_dim / 2 * lanes, kPart / 2 * head_dim};
    static thread_local std::vector<float> room;  // kept: to fill it with zeros takes as long as to use it
    int64_t total_size = 0;
    for (const int64_t size : sizes) total_size += size;
    if (static_cast<int64_t>(room.size()) < total_size) room.resize(total_size);
    float* places[7];
    float* next = room.data();
    for (int i = 0; i < 7; ++i) {
      places[i] = next;
      next += sizes[i];
    }
    scores = places[0], sums = places[1], highest = places[2], total = places[3];
    weights = reinterpret_cast<int*>(places[4]);
    queries = reinterpret_cast<T*>(places[5]), mixed = reinterpret_cast<T*>(places[6]);
  }

  void begin() {
    std::memset(queries, 0, head_dim * lanes * sizeof(T));
    std::fill_n(sums, lanes * head_dim, 0.0f);
    std::fill_n(highest, lanes, kNothing);
    std::fill_n(total, lanes, 0.0f);
  }

  void set_query(int64_t place, const T* query) {
    for (int64_t at = 0; at < head_dim; at += 2) {
      std::memcpy(&queries[(at / 2 * lanes + place) * 2], query + at, 2 * sizeof(T));
    }
  }

  // Scores of keys [count, D], times `scale`.
  void score(const T* keys, int64_t count, float scale) {
    for (int64_t vector = 0; vector < vectors; vector += 2) {
      if (vector + 1 < vectors) {
        score_vectors<2>(keys, count, scale, vector);
      } else {
        score_vectors<1>(keys, count, scale, vector);
      }
    }
  }

  template <int kVectors>
  void score_vectors(const T* keys, int64_t count, float scale, int64_t vector) {
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
        for (int v = 0; v < kVectors; ++v) both[v] = load(queries + (at / 2 * lanes + (vector + v) * kLanes) * 2);
        for (int i = 0; i < kKeys; ++i) {
          const __m512bh of_key = broadcast(pair_at(rows[i] + at));
          for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], both[v], of_key);
        }
      }
      for (int64_t i = 0; i < num_keys; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          _mm512_storeu_ps(scores + (key + i) * lanes + (vector + v) * kLanes,
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

  // Scores to weights under the maximum so far, as pairs of keys; what was summed before is brought down to it.
  void weigh(int64_t count) {
    if (count % 2) std::fill_n(&scores[count * lanes], lanes, -std::numeric_limits<float>::infinity());
    for (int64_t vector = 0; vector < vectors; ++vector) {
      float* first = &scores[vector * kLanes];
      const __m512 before = _mm512_loadu_ps(&highest[vector * kLanes]);
      __m512 most = before;
      for (int64_t key = 0; key < count; ++key) most = _mm512_max_ps(most, _mm512_loadu_ps(first + key * lanes));
      const __m512 fade = exp2(_mm512_sub_ps(before, most));
      __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(&total[vector * kLanes]), fade);
      for (int64_t key = 0; key < count; key += 2) {
        const __m512 even = exp2(_mm512_sub_ps(_mm512_loadu_ps(first + key * lanes), most));
        const __m512 odd = exp2(_mm512_sub_ps(_mm512_loadu_ps(first + (key + 1) * lanes), most));
        sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
        _mm512_storeu_si512(&weights[key / 2 * lanes + vector * kLanes],
                            _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
      _mm512_storeu_ps(&highest[vector * kLanes], most);
      _mm512_storeu_ps(&total[vector * kLanes], sum);
      float fades[kLanes];
      _mm512_storeu_ps(fades, fade);
      for (int64_t i = 0; i < kLanes; ++i) {
        if (fades[i] != 1.0f) {
          float* of_query = &sums[(vector * kLanes + i) * head_dim];
          for (int64_t at = 0; at < head_dim; at += kLanes) {
            _mm512_storeu_ps(of_query + at, _mm512_mul_ps(_mm512_loadu_ps(of_query + at), _mm512_set1_ps(fades[i])));
          }
        }
      }
    }
  }

  // Neighbouring values side by side; in an order of channels that `finish` undoes.
  void mix(const T* values, int64_t count) {
    for (int64_t key = 0; key < count; key += 2) {
      for (int64_t at = 0; at < head_dim; at += 32) {
        const __m512i even = _mm512_loadu_si512(values + key * head_dim + at);
        const __m512i odd =
            key + 1 < count ? _mm512_loadu_si512(values + (key + 1) * head_dim + at) : _mm512_setzero_si512();
        T* to = &mixed[key * head_dim + 2 * at];
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(even, odd));
        _mm512_storeu_si512(to + 32, _mm512_unpackhi_epi16(even, odd));
      }
    }
  }

  void add_values(int64_t count) {
    for (int64_t query = 0; query < num_queries; query += kSums) {
      for (int64_t at = 0; at < head_dim; at += 32) {
        __m512 low[kSums], high[kSums];
        for (int64_t i = 0; i < kSums; ++i) {
          low[i] = _mm512_loadu_ps(&sums[(query + i) * head_dim + at]);
          high[i] = _mm512_loadu_ps(&sums[(query + i) * head_dim + at + kLanes]);
        }
        for (int64_t pair = 0; pair < (count + 1) / 2; ++pair) {
          const __m512bh first = load(&mixed[2 * (pair * head_dim + at)]);
          const __m512bh second = load(&mixed[2 * (pair * head_dim + at) + 32]);
          for (int64_t i = 0; i < kSums; ++i) {
            const __m512bh weight = broadcast(weights[pair * lanes + query + i]);
            low[i] = _mm512_dpbf16_ps(low[i], weight, first);
            high[i] = _mm512_dpbf16_ps(high[i], weight, second);
          }
        }
        for (int64_t i = 0; i < kSums; ++i) {
          _mm512_storeu_ps(&sums[(query + i) * head_dim + at], low[i]);
          _mm512_storeu_ps(&sums[(query + i) * head_dim + at + kLanes], high[i]);
        }
      }
    }
  }

  void finish(int64_t query, T* out) const {
    const float share = 1.0f / total[query];
    for (int64_t at = 0; at < head_dim; at += 32) {
      const float* from = &sums[query * head_dim + at];
      for (int64_t i = 0; i < 32; ++i) {
        // Unpacking takes 4 of every 8 channels into either half.
        const int64_t place = i % 8 < 4 ? i / 8 * 4 + i % 4 : kLanes + i / 8 * 4 + i % 4;
        out[at + i] = static_cast<T>(from[place] * share);
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
    Head head(groups * width, dim);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t row = index / kv_heads, kv_head = index % kv_heads;
      const T* keys = key.const_data_ptr<T>() + row * key.stride(0) + kv_head * key.stride(1);
      const T* values = value.const_data_ptr<T>() + row * value.stride(0) + kv_head * value.stride(1);
      const T* mask_row = masks + (mask.size(0) > 1 ? row : 0) * groups * width * context;
      head.begin();
      for (int64_t place = 0; place < head.num_queries; ++place) {
        const int64_t of_head = kv_head * groups + place / width;
        head.set_query(place, queries + row * query.stride(0) + of_head * query.stride(1) +
                                  place % width * query.stride(2));
      }
      for (int64_t first = 0; first < context; first += kPart) {
        const int64_t count = std::min(kPart, context - first);
        head.score(keys + first * dim, count, static_cast<float>(scaling * kLog2E));
        for (int64_t place = 0; place < head.num_queries; ++place) {
          head.add_mask(place, mask_row + place * context + first, count);
        }
        head.weigh(count);
        head.mix(values + first * dim, count);
        head.add_values(count);
      }
      for (int64_t place = 0; place < head.num_queries; ++place) {
        const int64_t at = (row * width + place % width) * heads + kv_head * groups + place / width;
        head.finish(place, out.data_ptr<T>() + at * dim);
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

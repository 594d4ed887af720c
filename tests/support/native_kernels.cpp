// The kernels for a test, by ctypes.

#include "attention.h"
#include "pool.h"
#include "products.h"

using namespace draftless;

extern "C" {

// Whether they run here, and the form that they were compiled in.
int64_t lanes_of_kernels() { return may_multiply() ? kLanes : 0; }

int64_t has_tiles() { return block_outputs(kBFloat16) != block_outputs(kFloat); }

int64_t bytes_of_packed(int64_t width, int64_t in, int32_t dtype) {
  return packed_bytes(width, in, static_cast<DType>(dtype));
}

void pack_weight(const void* weight, const int64_t* sizes, int32_t dtype, void* packed) {
  pack(weight, sizes[0], sizes[1], sizes[2], static_cast<DType>(dtype), sizes[3], packed);
}

// sizes: rows, in, width, x_stride, out_stride, threads, grain.
void multiply(int32_t dtype, const void* x, const void* packed, const void* bias, void* out, const int64_t* sizes) {
  const Product of{static_cast<DType>(dtype), x, packed, bias, out, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  Pool pool(static_cast<int>(sizes[5]));
  pool.run(num_blocks(of.width, of.dtype), sizes[6], [&](int64_t begin, int64_t end) { product(of, begin, end); });
}

struct AttentionSizes {
  int64_t rows, width, window, heads, kv_heads, key_dim, value_dim, query_stride, capacity, slot, threads;
  float scaling, softcap;
};

// Appends `key` and `value` [rows * width, kv_heads, dim] to the cache first. Returns 0 for trees that are none.
int32_t attend(int32_t dtype, const AttentionSizes& sizes, const int64_t* starts, const int64_t* parents,
               const void* query, const void* key, const void* value, void* keys, void* values, void* out) {
  Pass pass;
  if (!pass.begin(sizes.rows, sizes.width, starts, parents)) return 0;
  const Attention of{static_cast<DType>(dtype), &pass, sizes.window, sizes.heads, sizes.kv_heads, sizes.key_dim,
                     sizes.value_dim, query, sizes.query_stride, keys, values, sizes.capacity, sizes.slot, out,
                     sizes.scaling, sizes.softcap};
  const int64_t tokens = sizes.rows * sizes.width;
  append(of, {key, sizes.kv_heads * sizes.key_dim, sizes.key_dim}, keys, 0, tokens);
  append(of, {value, sizes.kv_heads * sizes.value_dim, sizes.value_dim}, values, 0, tokens);
  Pool pool(static_cast<int>(sizes.threads));
  attention(of, pool);
  return 1;
}

void* new_pool(int32_t threads) { return new Pool(threads); }

void delete_pool(void* pool) { delete static_cast<Pool*>(pool); }

void resize_pool(void* pool, int32_t threads) { static_cast<Pool*>(pool)->resize(threads); }

// How often each of `items` was worked on in `jobs` jobs, and the number of threads that did.
int64_t count_items(void* pool, int64_t jobs, int64_t items, int64_t grain, int64_t pauses, int64_t* counts) {
  static std::atomic<int64_t> seen;
  static thread_local int64_t last = -1;
  static int64_t call = 0;
  ++call;
  seen = 0;
  for (int64_t job = 0; job < jobs; ++job) {
    static_cast<Pool*>(pool)->run(items, grain, [&](int64_t begin, int64_t end) {
      if (last != call) {
        last = call;
        ++seen;
      }
      for (int64_t i = begin; i < end; ++i) ++counts[i];
      for (volatile int64_t i = 0; i < pauses; i = i + 1) continue;
    });
  }
  return seen;
}
}

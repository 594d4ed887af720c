// A model's forward pass: a list of steps that engine/cpu/lower.py made of one recorded pass, on threads of our own.
//
// Called by ctypes; nothing of torch is included, so it compiles in seconds.

#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "pool.h"
#include "products.h"

using namespace draftless;

namespace {

enum Kind : int64_t { kTokens, kLinear, kAttend };  // as in engine/cpu/program.py

// Numbers of all tokens: `stride` numbers a token, of which those from `first` on are meant.
struct Place {
  int64_t offset;  // bytes a token before this buffer
  int64_t stride, first, is_output;
};

struct Step {
  int64_t kind;
  // kTokens
  const Instruction* instructions;
  int64_t count, room;
  // kLinear, and the output of kAttend
  Place x, out;
  int64_t in, width;
  const void *weight, *bias;
  // kAttend
  Place key, value;
  int64_t layer, layer_type, heads, kv_heads, key_dim, value_dim;
  double scaling, softcap;
};

struct Program {
  DType dtype;
  int64_t bytes_per_token;
  std::vector<Step> steps;
};

struct Request {
  const int64_t *ids, *starts, *parents, *windows;  // [rows, width]; [rows]; [rows, width]; per type of layer, 0: none
  int64_t rows, width, num_steps;
  char* cache;  // [layers, 2, cache_rows, kv_heads, capacity, slot]
  int64_t cache_rows, first_row, kv_heads, capacity, slot;
  char* output;           // [rows * width, output_width]
  int64_t output_width;
};

constexpr int64_t kPadding = INT64_MIN;  // as in engine/cpu/program.py: the id of what fills a row up

enum Outcome : int32_t { kNoTree, kDone, kOutside };

std::mutex one_pass;  // the pool and the buffers serve one pass at a time
Pool& pool() {
  static Pool* const threads = new Pool(1);  // never destroyed: a process may end in the middle of a pass
  return *threads;
}

char* buffers_of(size_t size) {
  static char* memory = nullptr;
  static size_t allocated = 0;
  if (size > allocated) {
    ::operator delete(memory, std::align_val_t(64));
    memory = static_cast<char*>(::operator new(size, std::align_val_t(64)));
    allocated = size;
  }
  return memory;
}

class Forward {
 public:
  Forward(const Program& program, const Request& run)
      : program_(program), run_(run), tokens_(run.rows * run.width), size_(size_of(program.dtype)) {}

  Outcome operator()() {
    if (!pass_.begin(run_.rows, run_.width, run_.starts, run_.parents)) return kNoTree;
    buffers_ = buffers_of(program_.bytes_per_token * tokens_);
    for (int64_t i = 0; i < run_.num_steps; ++i) {
      const Step& step = program_.steps[i];
      if (step.kind == kTokens) each_token(step);
      if (step.kind == kLinear) linear(step);
      if (step.kind == kAttend) attend(step);
      if (is_outside_) return kOutside;
    }
    return kDone;
  }

 private:
  char* at(const Place& place) const {
    char* const base = place.is_output ? run_.output : buffers_ + place.offset * tokens_;
    return base + place.first * size_;
  }

  int64_t stride(const Place& place) const { return place.is_output ? run_.output_width : place.stride; }

  void each_token(const Step& step) {
    const int64_t grain = std::max<int64_t>(1, tokens_ / (4 * pool().threads()));
    pool().run(tokens_, grain, [&](int64_t begin, int64_t end) {
      static thread_local std::vector<float> room;
      if (static_cast<int64_t>(room.size()) < step.room) room.resize(step.room);
      for (int64_t index = begin; index < end; ++index) {
        const bool is_padding = run_.ids[index] == kPadding;
        const int64_t position = is_padding ? 0 : pass_.position(index / run_.width, index % run_.width);
        const int64_t id = is_padding ? 0 : run_.ids[index];
        const Token token{index, tokens_, id, position, buffers_, run_.output, run_.output_width * size_, room.data(),
                          &is_outside_};
        for (int64_t i = 0; i < step.count; ++i) execute(step.instructions[i], token);
      }
    });
  }

  void linear(const Step& step) {
    const Product of{program_.dtype, at(step.x), step.weight, step.bias, at(step.out), tokens_, step.in, step.width,
                     stride(step.x), stride(step.out)};
    const int64_t blocks = num_blocks(step.width, program_.dtype), bytes = block_bytes(step.in, program_.dtype);
    const int64_t at_most = std::max<int64_t>(1, blocks / (4 * pool().threads()));
    const int64_t grain = std::min(at_most, std::max<int64_t>(1, (256 << 10) / bytes));
    pool().run(blocks, grain, [&](int64_t begin, int64_t end) { product(of, begin, end); });
  }

  void attend(const Step& step) {
    const int64_t row = run_.kv_heads * run_.capacity * run_.slot * size_;
    char* const keys = run_.cache + (step.layer * 2 * run_.cache_rows + run_.first_row) * row;
    char* const values = keys + run_.cache_rows * row;
    const Attention of{program_.dtype, &pass_, run_.windows[step.layer_type], step.heads, step.kv_heads, step.key_dim,
                       step.value_dim, at(step.x), stride(step.x), keys, values, run_.capacity, run_.slot,
                       at(step.out), static_cast<float>(step.scaling), static_cast<float>(step.softcap)};
    append(of, {at(step.key), stride(step.key), step.key_dim}, keys, 0, tokens_);
    append(of, {at(step.value), stride(step.value), step.value_dim}, values, 0, tokens_);
    attention(of, pool());
  }

  const Program& program_;
  const Request& run_;
  const int64_t tokens_, size_;
  Pass pass_;
  char* buffers_ = nullptr;
  std::atomic<bool> is_outside_{false};
};

}  // namespace

extern "C" {

int32_t is_usable() { return may_multiply(); }

void set_threads(int32_t threads) {
  const std::lock_guard<std::mutex> lock(one_pass);
  pool().resize(threads);
}

int64_t bytes_of_packed(int64_t width, int64_t in, int32_t dtype) {
  return packed_bytes(width, in, static_cast<DType>(dtype));
}

void pack_weight(const void* weight, int64_t rows, int64_t in, int64_t stride, int32_t dtype, int64_t first_output,
                 void* packed) {
  const std::lock_guard<std::mutex> lock(one_pass);
  const auto type = static_cast<DType>(dtype);
  const int64_t outputs = block_outputs(type), before = first_output % outputs;
  const int64_t blocks = (before + rows + outputs - 1) / outputs;
  pool().run(blocks, std::max<int64_t>(1, blocks / (4 * pool().threads())), [&](int64_t begin, int64_t end) {
    const int64_t first = std::max<int64_t>(0, begin * outputs - before), last = std::min(rows, end * outputs - before);
    const char* from = static_cast<const char*>(weight) + first * stride * size_of(type);
    pack(from, last - first, in, stride, type, first_output + first, packed);
  });
}

void* new_program(int32_t dtype, int64_t bytes_per_token, const Step* steps, int64_t count) {
  return new Program{static_cast<DType>(dtype), bytes_per_token, std::vector<Step>(steps, steps + count)};
}

void delete_program(void* program) { delete static_cast<Program*>(program); }

// An `Outcome`: not done if a parent does not stand before its node, or an embedding has no row for a node.
int32_t run_program(const void* program, const Request* run) {
  const std::lock_guard<std::mutex> lock(one_pass);
  return Forward(*static_cast<const Program*>(program), *run)();
}

// Brings the slots of an accepted path of one row, nodes `path` (ascending) behind `start`, into its order. `data` is
// [parts, rows, kv_heads, capacity, slot_bytes].
void move_slots(char* data, int64_t parts, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t slot_bytes,
                int64_t row, int64_t start, const int64_t* path, int64_t length) {
  for (int64_t index = 0; index < parts * kv_heads; ++index) {
    const int64_t head = (index / kv_heads * rows + row) * kv_heads + index % kv_heads;
    char* const first = data + (head * capacity + start) * slot_bytes;
    for (int64_t place = 0; place < length; ++place) {
      if (path[place] != place) std::memcpy(first + place * slot_bytes, first + path[place] * slot_bytes, slot_bytes);
    }
  }
}
}

// What the target said after tokens and after pairs of them: `draftless.drafters.successors`.

#include <c10/util/flat_hash_map.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace {

struct Said {
  int64_t count = 0;
  int64_t ids[kNumLikely];
  float logits[kNumLikely];
};

class Successors {
 public:
  explicit Successors(int64_t most_entries) : most_entries_(most_entries) {}

  void learn(int64_t before, int64_t token_id, const Said& said) {
    if (static_cast<int64_t>(new_.places.size()) >= most_entries_) {
      old_ = std::move(new_);
      new_ = Generation();
    }
    const auto [found, is_new] = new_.places.emplace(pair(before, token_id), new_.said.size());
    const size_t place = found->second;
    if (is_new) {
      new_.said.push_back(said);
    } else {
      new_.said[place] = said;
    }
    new_.places[alone(token_id)] = place;
  }

  // What is known, and the first of its cells.
  std::pair<const Said*, int64_t> after(int64_t before, int64_t token_id) const {
    for (const uint64_t key : {pair(before, token_id), alone(token_id)}) {
      for (const Generation* one : {&new_, &old_}) {
        const auto found = one->places.find(key);
        if (found != one->places.end()) {
          return {&one->said[found->second], key == alone(token_id) ? kAfterToken : kAfterPair};
        }
      }
    }
    return {nullptr, 0};
  }

 private:
  struct Generation {
    ska::flat_hash_map<uint64_t, size_t> places;
    std::vector<Said> said;  // one for each pair; that of the token alone is its newest pair's
  };

  static uint64_t pair(int64_t before, int64_t token_id) {
    return static_cast<uint64_t>(before + 1) << 32 | static_cast<uint64_t>(token_id);
  }

  static uint64_t alone(int64_t token_id) { return 1ull << 63 | static_cast<uint64_t>(token_id); }

  int64_t most_entries_;
  Generation new_, old_;
};

}  // namespace

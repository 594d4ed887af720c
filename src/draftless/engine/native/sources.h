// What one request knows about its next tokens: `draftless.drafters.sources`.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using Ids = std::vector<int64_t>;

struct Sampling {
  uint64_t noise;  // of seed and sample
  double temperature;
  bool is_truncated;
};

class Sources {
 public:
  SuffixIndex index;
  int64_t last = -1, before_last = -1;  // tokens of the text
  Ids slots;                            // of the probes that speak for depths 1, 2, ...

  Sources(c10::intrusive_ptr<Successors> successors, std::optional<Sampling> sampling)
      : successors_(std::move(successors)), sampling_(sampling) {}

  // Other threads may use the same table: Python runs on while C++ does.
  std::unique_lock<std::mutex> lock() { return std::unique_lock<std::mutex>(successors_->mutex); }

  void forget_ahead() {
    ahead_.clear();
    slots.clear();
  }

  // Takes in new text; how many of its last tokens stand in it before.
  int64_t look(const Ids& token_ids) {
    for (const int64_t token_id : token_ids) {
      index.extend(token_id);
      before_last = last;
      last = token_id;
    }
    num_tokens_ += static_cast<int64_t>(token_ids.size());
    return index.state.size - 1;
  }

  // Adds the candidates for a place `depth` tokens behind the text's last one; the cell of none of them.
  int64_t find(const SuffixIndex::State& context, int64_t before, int64_t token_id, int64_t depth, Found& found) const {
    const int64_t order = retrieve(context, depth, found);
    int64_t none_cell = kNone + (order == 0 ? 0 : order == 1 ? 1 : 2);
    const auto [said, first_cell] = successors_->after(before, token_id);
    if (said != nullptr) {
      none_cell += 3;
      add_said(*said, depth, first_cell, found);
    }
    if (depth <= static_cast<int64_t>(ahead_.size())) {
      none_cell += 6;
      found.insert(found.end(), ahead_[depth - 1].begin(), ahead_[depth - 1].end());
    }
    return none_cell;
  }

  // What the target said at the nodes of a step [N, V]; the first of them, the drafts, are learnt. `before_root` is
  // the token before the root, `ahead` are the nodes that speak for depths 1, 2, ... of the next tree.
  void observe(const at::Tensor& logits, int64_t num_drafts, const Ids& token_ids, const Ids& parents,
               int64_t before_root, const Ids& ahead) {
    const std::vector<Said> said = all_said(logits);
    for (int64_t node = 0; node < num_drafts; ++node) {
      successors_->learn(node == 0 ? before_root : token_ids[parents[node]], token_ids[node], said[node]);
    }
    listen(logits, said, ahead);
  }

 private:
  uint64_t stream(int64_t depth) const { return mix(sampling_->noise + static_cast<uint64_t>(num_tokens_ + depth - 1)); }

  double least_share() const { return sampling_ ? kLeastCoupled : kLeastGreedy; }

  int64_t retrieve(const SuffixIndex::State& context, int64_t depth, Found& found) const {
    int64_t longest = 0;
    for (int64_t order = context.size - 1; order > 0; --order) {
      const SuffixIndex::Followers& below = index.followers(context.nodes[order]);
      const int64_t num_seen = static_cast<int64_t>(found.size());
      if (below.count <= num_seen) continue;
      if (longest == 0) longest = order;
      int64_t place = 0;
      for (const int64_t token_id : {below.newest, below.second}) {
        const auto is_same = [&](const Candidate& one) { return one.token_id == token_id; };
        if (token_id >= 0 && std::none_of(found.begin(), found.end(), is_same)) {
          const int64_t cell = kRetrieved + ((order - 1) * kNewest + place) * kKinds + (below.count > 1);
          found.push_back({token_id, cell});
        }
        ++place;
      }
      if (static_cast<int64_t>(found.size()) >= kMostRetrieved) break;
    }
    if (sampling_) {
      for (Candidate& one : found) {
        const double noise = noise_of(stream(depth), one.token_id);
        one.cell += (noise < 0.5 ? 0 : noise < 2.0 ? 1 : noise < 3.5 ? 2 : 3) - one.cell % kKinds;
      }
    }
    return longest;
  }

  void add_said(const Said& said, int64_t depth, int64_t first_cell, Found& found) const {
    const int64_t count = std::min(said.count, kNumShared);
    if (!sampling_) return add_shares(said.ids, said.logits, count, least_share(), first_cell, found);
    std::pair<double, int64_t> ranked[kNumLikely];
    for (int64_t i = 0; i < said.count; ++i) {
      const double noise = noise_of(stream(depth), said.ids[i]);
      ranked[i] = {-(static_cast<double>(said.logits[i]) / sampling_->temperature + noise), said.ids[i]};
    }
    std::partial_sort(ranked, ranked + count, ranked + said.count);
    int64_t ids[kNumShared];
    double scores[kNumShared];
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = -ranked[i].first;
      ids[i] = ranked[i].second;
    }
    add_shares(ids, scores, count, least_share(), first_cell, found);
  }

  static std::vector<Said> all_said(const at::Tensor& logits) {
    using Likeliest = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t);
    static const auto likeliest = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("draftless_cpu::likeliest", "")
                                      .typed<Likeliest>();
    const int64_t count = std::min(kNumLikely, logits.size(1));
    const auto [ids, values] = likeliest.call(logits, count);
    std::vector<Said> said(logits.size(0));
    for (size_t node = 0; node < said.size(); ++node) {
      said[node].count = count;
      std::copy_n(ids.const_data_ptr<int64_t>() + node * count, count, said[node].ids);
      std::copy_n(values.const_data_ptr<float>() + node * count, count, said[node].logits);
    }
    return said;
  }

  std::tuple<at::Tensor, at::Tensor> under_noise(const at::Tensor& logits, const Ids& nodes) const {
    using Likeliest = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, at::IntArrayRef, at::IntArrayRef, double,
                                                         int64_t);
    static const auto likeliest = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("draftless_cpu::likeliest_under_noise", "")
                                      .typed<Likeliest>();
    Ids streams;
    for (size_t index = 0; index < nodes.size(); ++index) {
      streams.push_back(static_cast<int64_t>(stream(static_cast<int64_t>(index) + 1)));
    }
    return likeliest.call(logits, nodes, streams, sampling_->temperature, std::min(kNumShared, logits.size(1)));
  }

  // Keep what some nodes say about depths 1, 2, ... of the next tree.
  void listen(const at::Tensor& logits, const std::vector<Said>& said, const Ids& nodes) {
    ahead_.assign(nodes.size(), {});
    at::Tensor ids, scores;
    const bool is_drawn = sampling_ && !sampling_->is_truncated && !nodes.empty();
    if (is_drawn) std::tie(ids, scores) = under_noise(logits, nodes);
    for (size_t index = 0; index < nodes.size(); ++index) {
      const int64_t depth = static_cast<int64_t>(index) + 1;
      const int64_t first_cell =
          index < slots.size() ? kProbed + std::min(slots[index] - 1, kPlaces - 1) * kShares
                               : kDenoised + std::min(depth - 1, kPlaces - 1) * kShares;
      if (is_drawn) {
        const int64_t count = ids.size(1), at = static_cast<int64_t>(index) * count;
        add_shares(ids.const_data_ptr<int64_t>() + at, scores.const_data_ptr<double>() + at, count, least_share(),
                   first_cell, ahead_[index]);
      } else {
        add_said(said[nodes[index]], depth, first_cell, ahead_[index]);
      }
    }
  }

  c10::intrusive_ptr<Successors> successors_;
  std::optional<Sampling> sampling_;
  int64_t num_tokens_ = 0;
  std::vector<Found> ahead_;  // of depths 1, 2, ...
};

}  // namespace

// What drafter `auto` knows of one request, and the tree that it grows from it: the same as
// `draftless.drafters.guesses`, number for number, where everything is explained.
//
// A step of `auto` asks for some thousand small things. The weights have just swept the caches, so in Python
// each of them waits for memory; here they lie close together (docs/adr/0009).

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "constants.h"
#include "fusion.h"
#include "likeliest.h"
#include "noisy.h"
#include "successors.h"
#include "suffix_index.h"
// After the ones it needs.
#include "sources.h"

namespace {

struct Node {
  int64_t token_id, parent, depth;
  double reach, stop;
  int64_t num_probes = 0;
  SuffixIndex::State context;
  Found found;
  int64_t none_cell = 0;
  std::vector<std::pair<double, int64_t>> options;
};

class Guesses {
 public:
  // `noise` is that of seed and sample; none of a greedy request.
  Guesses(std::shared_ptr<Successors> successors, std::vector<double> weights, std::optional<uint64_t> noise,
          double temperature, bool is_truncated)
      : sources_(std::move(successors), sampling_of(noise, temperature, is_truncated)) {
    fusion_.weights = std::move(weights);
  }

  std::vector<double> weights() const { return fusion_.weights; }

  // Takes in text of steps that were not observed; how many of its last tokens stand in it before.
  int64_t look(const Ids& token_ids) {
    if (!token_ids.empty()) sources_.forget_ahead();
    return sources_.look(token_ids);
  }

  // --- `BestFirst` ---

  std::vector<double> grow(const std::vector<double>& costs, double worth, int64_t max_depth, bool has_probes) {
    TORCH_CHECK(!costs.empty());
    max_depth_ = max_depth;
    has_probes_ = has_probes;
    num_nodes_ = 0;
    order_ = 0;
    heap_.clear();
    added_.clear();
    std::vector<double> gains{1.0};
    least_ = worth * costs[0];
    floor_ = worth * *std::min_element(costs.begin(), costs.end());
    add_node(-1, sources_.last, 1.0);
    open(0);
    while (!heap_.empty() && gains.size() < costs.size()) {
      const Offer best = heap_.front();
      least_ = worth * costs[gains.size() - 1];
      if (best.gain < least_) break;
      std::pop_heap(heap_.begin(), heap_.end(), is_behind);
      heap_.pop_back();
      if (best.rank == kClosed) {
        open(best.node);
        continue;
      }
      gains.push_back(best.gain);
      if (best.rank >= 0) {
        added_.push_back(num_nodes_);
        const auto& options = nodes_[best.node].options;
        const double reach = nodes_[best.node].reach;
        const auto [chance, token_id] = options[best.rank];
        if (best.rank + 1 < static_cast<int64_t>(options.size())) {
          push(reach * options[best.rank + 1].first, best.node, best.rank + 1);
        }
        add_node(best.node, token_id, reach * chance);
      } else {
        added_.push_back(~best.node);
        ++nodes_[best.node].num_probes;
        push_probe(best.node);
      }
    }
    return gains;
  }

  // Tokens, parents and scores of the tree, and how many of its nodes are no probes.
  std::tuple<Ids, Ids, std::vector<double>, int64_t> tree(int64_t width, const Ids& adaptive_ids) {
    TORCH_CHECK(num_nodes_ > 0, "tree() before grow()");
    std::vector<Ids> children(num_nodes_);
    Ids num_probes(num_nodes_, 0), place(num_nodes_, -1), stack{0};
    for (size_t index = 0; index < added_.size() && static_cast<int64_t>(index) < width - 1; ++index) {
      const int64_t added = added_[index];
      if (added >= 0) {
        children[nodes_[added].parent].push_back(added);
      } else {
        ++num_probes[~added];
      }
    }
    drafts_.clear();
    while (!stack.empty()) {
      const int64_t node = stack.back();
      stack.pop_back();
      place[node] = static_cast<int64_t>(drafts_.size());
      drafts_.push_back(node);
      stack.insert(stack.end(), children[node].rbegin(), children[node].rend());
    }
    token_ids_.clear();
    parents_.clear();
    std::vector<double> scores;
    for (const int64_t node : drafts_) {
      token_ids_.push_back(nodes_[node].token_id);
      parents_.push_back(node == 0 ? -1 : place[nodes_[node].parent]);
      scores.push_back(nodes_[node].reach);
    }
    const int64_t num_drafts = static_cast<int64_t>(drafts_.size());
    probes_.assign(num_drafts, {});
    for (int64_t index = 0; index < num_drafts; ++index) {
      int64_t above = index;
      for (int64_t slot = 0; slot < num_probes[drafts_[index]]; ++slot) {
        parents_.push_back(above);
        above = static_cast<int64_t>(token_ids_.size());
        probes_[index].push_back(above);
        token_ids_.push_back(adaptive_ids[std::min<int64_t>(slot, adaptive_ids.size() - 1)]);
        scores.push_back(nodes_[drafts_[index]].stop);
      }
    }
    return {token_ids_, parents_, scores, num_drafts};
  }

  // What the target said at the nodes of the last tree [N, V], the walk, and the tokens that it committed.
  void observe(const at::Tensor& logits, const Ids& path, const Ids& committed) {
    const auto is_draft = [&](int64_t node) { return node >= 0 && node < static_cast<int64_t>(drafts_.size()); };
    TORCH_CHECK(logits.stride(1) == 1 && logits.size(0) == static_cast<int64_t>(token_ids_.size()) && !path.empty() &&
                    path.size() == committed.size() && std::all_of(path.begin(), path.end(), is_draft),
                "not the step of the tree that was proposed");
    worth_.learn(sources_.slots, [&](int64_t place) {
      if (place >= static_cast<int64_t>(path.size())) return 0.0;
      const Node& node = nodes_[drafts_[path[place]]];
      return fusion_.chance(node.found, node.none_cell, committed[place], kNumCells) -
             fusion_.chance(node.found, node.none_cell, committed[place], kProbed);
    });
    for (size_t place = 0; place < path.size(); ++place) {
      const Node& node = nodes_[drafts_[path[place]]];
      if (!node.found.empty()) fusion_.learn(node.found, node.none_cell, committed[place]);
    }
    const int64_t before_root = sources_.before_last;
    sources_.look(committed);
    Ids ahead = speaking_probes(path);
    const Ids leftover = leftover_nodes(path.back());
    for (size_t place = ahead.size(); place < leftover.size() && place < kAhead; ++place) ahead.push_back(leftover[place]);
    sources_.observe(logits, static_cast<int64_t>(drafts_.size()), token_ids_, parents_, before_root, ahead);
  }

 private:
  static std::optional<Sampling> sampling_of(std::optional<uint64_t> noise, double temperature, bool is_truncated) {
    if (!noise) return std::nullopt;
    return Sampling{*noise, temperature, is_truncated};
  }

  struct Offer {
    double gain;
    int64_t order, node, rank;  // the rank of a candidate, or -1 of a probe, or kClosed
  };

  static constexpr int64_t kClosed = -2;

  static bool is_behind(const Offer& one, const Offer& other) {
    return one.gain != other.gain ? one.gain < other.gain : one.order > other.order;
  }

  void push(double gain, int64_t node, int64_t rank) {
    if (gain < floor_) return;
    heap_.push_back({gain, ++order_, node, rank});
    std::push_heap(heap_.begin(), heap_.end(), is_behind);
  }

  void add_node(int64_t parent, int64_t token_id, double reach) {
    const int64_t index = num_nodes_++;
    if (static_cast<int64_t>(nodes_.size()) < num_nodes_) nodes_.emplace_back();
    Node& node = nodes_[index];
    node.token_id = token_id;
    node.parent = parent;
    node.depth = index == 0 ? 0 : nodes_[parent].depth + 1;
    node.reach = node.stop = reach;
    node.num_probes = 0;
    node.context = SuffixIndex::State();
    node.found.clear();
    node.none_cell = 0;
    node.options.clear();
    if (index != 0) push(reach, index, kClosed);
  }

  void open(int64_t index) {
    Node& node = nodes_[index];
    int64_t before = sources_.before_last;
    if (index == 0) {
      node.context = sources_.index.state;
    } else {
      before = nodes_[node.parent].token_id;
      node.context = sources_.index.after(nodes_[node.parent].context, node.token_id);
    }
    double stop = node.reach;
    if (node.depth < max_depth_) {
      node.none_cell = sources_.find(node.context, before, node.token_id, node.depth + 1, node.found);
      fusion_.chances(node.found, node.none_cell, node.options);
      if (node.depth + 1 >= kFadesFrom) {
        for (auto& option : node.options) option.first *= kFade;
      }
      if (!node.options.empty()) push(node.reach * node.options[0].first, index, 0);
      for (const auto& option : node.options) {
        if (node.reach * option.first < least_) break;
        stop -= node.reach * option.first;
      }
    }
    node.stop = std::max(kDoubt * node.reach, stop);
    if (has_probes_) push_probe(index);
  }

  void push_probe(int64_t index) {
    const Node& node = nodes_[index];
    if (node.num_probes < ProbeWorth::kSlots && node.depth + node.num_probes + 1 < max_depth_) {
      push(node.stop * worth_.of_slots[node.num_probes], index, -1);
    }
  }

  // Probes that speak for depths 1, 2, ... of the next tree; their slots are kept.
  Ids speaking_probes(const Ids& path) {
    Ids nodes, &slots = sources_.slots;
    slots.clear();
    while (true) {
      const size_t num_found = nodes.size();
      for (size_t up = 0; up < path.size() && nodes.size() == num_found; ++up) {
        const Ids& chain = probes_[path[path.size() - 1 - up]];
        const size_t slot = num_found + up;
        if (slot >= chain.size()) continue;
        nodes.push_back(chain[slot]);
        slots.push_back(static_cast<int64_t>(slot) + 1);
      }
      if (nodes.size() == num_found) return nodes;
    }
  }

  // `leftover_nodes` of the drafts.
  Ids leftover_nodes(int64_t stop) const {
    const int64_t count = static_cast<int64_t>(drafts_.size());
    Ids heights(count, 0), heirs(count, -1);
    for (int64_t child = count - 1; child > 0; --child) {
      const int64_t parent = parents_[child], height = heights[child] + 1;
      if (height >= heights[parent]) {
        heights[parent] = height;
        heirs[parent] = child;
      }
    }
    Ids path;
    for (int64_t node = heirs[stop]; node >= 0; node = heirs[node]) path.push_back(node);
    int64_t depth = static_cast<int64_t>(path.size());
    for (int64_t node = stop; node != 0; node = parents_[node]) ++depth;
    for (int64_t node = heirs[0]; node >= 0; node = heirs[node]) {
      if (depth-- <= 0) path.push_back(node);
    }
    return path;
  }

  Sources sources_;
  Fusion fusion_;
  ProbeWorth worth_;

  // The growing tree: the root and the drafts, each with its probes.
  std::vector<Node> nodes_;  // the first `num_nodes_`
  int64_t num_nodes_ = 0, order_ = 0, max_depth_ = 0;
  bool has_probes_ = false;
  double least_ = 0.0, floor_ = 0.0;
  std::vector<Offer> heap_;
  Ids added_;  // a draft's node, or ~node of a probe's

  // The tree that was proposed: drafts first.
  Ids token_ids_, parents_, drafts_;
  std::vector<Ids> probes_;  // of each draft
};

}  // namespace

PYBIND11_MODULE(guesses, module) {
  pybind11::class_<Successors, std::shared_ptr<Successors>>(module, "Successors").def(pybind11::init<int64_t>());
  pybind11::class_<Guesses>(module, "Guesses")
      .def(pybind11::init<std::shared_ptr<Successors>, std::vector<double>, std::optional<uint64_t>, double, bool>())
      .def("weights", &Guesses::weights)
      .def("look", &Guesses::look)
      .def("grow", &Guesses::grow)
      .def("tree", &Guesses::tree)
      .def("observe", &Guesses::observe);
}

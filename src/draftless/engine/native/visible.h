// What the nodes of a pass see: runs of slots of their row of the cache.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace draftless {

struct Run {  // slots begin .. end - 1
  int64_t begin, end;
};

// The trees of a pass: row `r` has `width` nodes behind `starts[r]` cached tokens, the last ones padding.
class Pass {
 public:
  // `parents` [rows, width]: of each node a lower one, or -1 for a root and for padding. Returns whether it is so.
  bool begin(int64_t rows, int64_t width, const int64_t* starts, const int64_t* parents) {
    width_ = width;
    starts_.assign(starts, starts + rows);
    depths_.assign(rows * width, 0);
    first_runs_.assign(1, 0);
    runs_.clear();
    for (int64_t node = 0; node < rows * width; ++node) {
      const int64_t parent = parents[node], own = node % width;
      if (parent >= own || parent < -1) return false;
      if (parent >= 0) {
        depths_[node] = depths_[node - own + parent] + 1;
        const int64_t from = first_runs_[node - own + parent], to = first_runs_[node - own + parent + 1];
        for (int64_t i = from; i < to; ++i) runs_.push_back(Run(runs_[i]));
      }
      if (parent >= 0 && parent == own - 1) {
        ++runs_.back().end;
      } else {
        runs_.push_back({own, own + 1});
      }
      first_runs_.push_back(runs_.size());
    }
    return true;
  }

  int64_t rows() const { return starts_.size(); }
  int64_t width() const { return width_; }
  int64_t start(int64_t row) const { return starts_[row]; }
  int64_t context(int64_t row) const { return starts_[row] + width_; }
  int64_t position(int64_t row, int64_t node) const { return starts_[row] + depths_[row * width_ + node]; }

  // Appends what a node sees, in the order of its path: all before it, or the `window` (not 0) last with itself.
  void see(int64_t row, int64_t node, int64_t window, std::vector<Run>& runs) const {
    const int64_t start = starts_[row];
    int64_t hidden = window == 0 ? 0 : std::max<int64_t>(0, position(row, node) - window + 1);
    const size_t first = runs.size();
    if (hidden < start) runs.push_back({hidden, start});
    hidden = std::max<int64_t>(0, hidden - start);
    for (int64_t i = first_runs_[row * width_ + node]; i < first_runs_[row * width_ + node + 1]; ++i) {
      Run run{start + runs_[i].begin, start + runs_[i].end};
      const int64_t skipped = std::min(hidden, run.end - run.begin);
      hidden -= skipped;
      run.begin += skipped;
      if (run.begin == run.end) continue;
      if (runs.size() > first && runs.back().end == run.begin) {
        runs.back().end = run.end;
      } else {
        runs.push_back(run);
      }
    }
  }

 private:
  int64_t width_ = 0;
  std::vector<int64_t> starts_, depths_, first_runs_;
  std::vector<Run> runs_;  // of all nodes behind one another, counted from the start of the tree
};

}  // namespace draftless

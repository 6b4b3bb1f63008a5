// One example's patches and gradients, and their product, tile by tile in registers.

#ifndef TFPRIVACY_LAB_DP_NATIVE_EXAMPLE_OPERANDS_H_
#define TFPRIVACY_LAB_DP_NATIVE_EXAMPLE_OPERANDS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tfprivacy_lab {

// A tile has kRows x 2 vectors, or 2 kRows x 1, as many as keep the multipliers busy and fit the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#else
constexpr int kLanes = 8, kRows = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int kSpill = 8;  // Runs of floats are copied eight at a time and may read and write so far beyond.

inline int RoundUp(int value, int unit) { return (value + unit - 1) / unit * unit; }

// Doubles that floats are added to. Loops, which compilers vectorise: of __builtin_convertvector on vectors longer than
// the processor's, GCC 12 makes a conversion at a time.
struct Doubles {
  double values[kLanes] = {};

  void Add(const Vector& floats) {
    for (int i = 0; i < kLanes; ++i) values[i] += floats[i];
  }

  double Total() const {
    double total = 0.0;
    for (int i = 0; i < kLanes; ++i) total += values[i];
    return total;
  }
};

// In doubles, whose squares of floats neither vanish nor overflow; and never less than if every number were the
// smallest that is not flushed to zero.
inline double SquaredNorm(const float* values, int64_t count) {
  constexpr double kSmallest = 0x1p-126;
  constexpr int kTogether = 16;  // As many sums as keep the adders of any processor busy.
  double squares[kTogether] = {};
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether)
    for (int k = 0; k < kTogether; ++k) {
      const double value = values[i + k];
      squares[k] += value * value;
    }
  double total = count * (kSmallest * kSmallest);
  for (int k = 0; k < kTogether; ++k) total += squares[k];
  for (; i < count; ++i) total += static_cast<double>(values[i]) * values[i];
  return total;
}

// What a convolution looks at. Sizes in elements.
struct Geometry {
  int height, width, channels;               // Of the input.
  int rows, columns, filters;                // Of the output.
  std::vector<int> kernel, strides, dilations, padding;  // padding: zeros above and on the left.

  int area() const { return kernel[0] * kernel[1]; }
  int positions() const { return rows * columns; }
  int depth() const { return area() * channels; }
  // What the patches reach over: of an axis (0: height, 1: width), in 64 bits, as sizes that do not fit are to be seen.
  int64_t reach(int axis) const {
    const int64_t outputs = axis == 0 ? rows : columns;
    return (outputs - 1) * strides[axis] + static_cast<int64_t>(kernel[axis] - 1) * dilations[axis] + 1;
  }
  int padded_height() const { return static_cast<int>(reach(0)); }
  int padded_width() const { return static_cast<int>(reach(1)); }
  // Whether all patches lie within the input.
  bool inside() const {
    return padding[0] + padding[1] == 0 && reach(0) <= height && reach(1) <= width &&
           static_cast<int64_t>(width) * channels < (1 << 30);
  }
};

// One example's operands: patches (positions, depth) and gradients (positions, filters), columns padded by zeros.
// Where a patch is made of whole groups of kRows numbers, it is read from the image, which is the input itself if all
// patches lie within it; otherwise it is laid out first.
class Operands {
 public:
  explicit Operands(const Geometry& geometry)
      : g_(geometry),
        whole_(geometry.dilations[1] == 1),
        run_(whole_ ? geometry.kernel[1] * geometry.channels : geometry.channels),
        runs_(whole_ ? 1 : geometry.kernel[1]),
        depth_(RoundUp(geometry.depth(), 2 * kRows)),
        in_place_(run_ % kRows == 0 && depth_ == geometry.depth()),
        is_input_(in_place_ && geometry.inside()),
        width_(static_cast<int64_t>(is_input_ ? geometry.width : geometry.padded_width()) * geometry.channels),
        line_step_(geometry.dilations[0] * width_),
        run_step_(static_cast<int64_t>(geometry.dilations[1]) * geometry.channels),
        ldg_(RoundUp(geometry.filters, kLanes)),
        image_(is_input_ ? 0 : static_cast<size_t>(geometry.padded_height()) * width_ + kSpill),
        patches_(in_place_ ? 0 : static_cast<size_t>(geometry.positions()) * depth_ + kSpill),
        padded_(ldg_ == geometry.filters ? 0 : static_cast<size_t>(geometry.positions()) * ldg_) {
    for (int d = 0; d < depth_; d += kRows) {
      const int number = d / run_;
      groups_.push_back(in_place_ ? number / runs_ * line_step_ + number % runs_ * run_step_ + d % run_ : d);
    }
    rows_ = in_place_ ? g_.rows : 1;
    columns_ = in_place_ ? g_.columns : g_.positions();
    right_ = in_place_ ? static_cast<int64_t>(g_.strides[1]) * g_.channels : depth_;
    down_ = g_.strides[0] * width_;
  }

  void Load(const float* input, const float* gradients) {
    if (is_input_) {
      x_ = input;
    } else {
      Pad(input);
      x_ = image_.data();
    }
    if (!in_place_) {
      if (run_ <= kSpill)
        LayOut<true>();
      else
        LayOut<false>();
      x_ = patches_.data();
    }
    gradients_ = gradients;
    if (ldg_ != g_.filters) {
      for (int t = 0; t < g_.positions(); ++t)
        std::copy_n(gradients + static_cast<size_t>(t) * g_.filters, g_.filters,
                    padded_.data() + static_cast<size_t>(t) * ldg_);
      gradients_ = padded_.data();
    }
  }

  // Calls found(row, column, vector) for each vector of J: column, column + 1, ... of one row; rows and columns
  // beyond J's are zeros.
  template <typename Found>
  void Multiply(Found found) const {
    int p = 0;
    for (; p + kLanes < ldg_; p += 2 * kLanes) Column<kRows, 2>(p, found);
    if (p < ldg_) Column<2 * kRows, 1>(p, found);
  }

  // The gradients summed over positions, (filters).
  void Sum(const float* gradients, float* sums) const {
    const int filters = g_.filters, positions = g_.positions();
    int p = 0;
    for (; p + kLanes <= filters; p += kLanes) {
      Vector sum = {};
      for (int t = 0; t < positions; ++t)
        sum += *reinterpret_cast<const Vector*>(gradients + static_cast<int64_t>(t) * filters + p);
      *reinterpret_cast<Vector*>(sums + p) = sum;
    }
    for (; p < filters; ++p) {
      float sum = 0.0f;
      for (int t = 0; t < positions; ++t) sum += gradients[static_cast<int64_t>(t) * filters + p];
      sums[p] = sum;
    }
  }

 private:
  void Pad(const float* input) {
    const int width = g_.padded_width(), above = g_.padding[0], left = g_.padding[1];
    const int rows = std::min(g_.padded_height() - above, g_.height);
    const int run = std::min(width - left, g_.width) * g_.channels;
    for (int y = 0; y < rows; ++y)
      std::memcpy(&image_[(static_cast<size_t>(y + above) * width + left) * g_.channels],
                  input + static_cast<size_t>(y) * g_.width * g_.channels, sizeof(float) * run);
  }

  template <bool kShort>
  void LayOut() {
    const int lines = g_.kernel[0], depth = g_.depth(), padded = depth_, rows = g_.rows, columns = g_.columns;
    const int run = run_, runs = runs_;
    const int64_t line_step = line_step_, run_step = run_step_, down = down_;
    const int64_t right = static_cast<int64_t>(g_.strides[1]) * g_.channels;
    float* patch = patches_.data();
    for (int y = 0; y < rows; ++y)
      for (int x = 0; x < columns; ++x, patch += padded) {
        const float* line = image_.data() + y * down + x * right;
        float* to = patch;
        for (int i = 0; i < lines; ++i, line += line_step) {
          const float* from = line;
          for (int j = 0; j < runs; ++j, from += run_step, to += run) {
            if (kShort) {
              *reinterpret_cast<Eight*>(to) = *reinterpret_cast<const Eight*>(from);
            } else {
              for (int k = 0; k < run; k += kSpill)
                *reinterpret_cast<Eight*>(to + k) = *reinterpret_cast<const Eight*>(from + k);
            }
          }
        }
        for (int d = depth; d < padded; ++d) patch[d] = 0.0f;
      }
  }

  template <int R, int V, typename Found>
  void Column(int p, Found found) const {
    for (int d = 0; d < g_.depth(); d += R) {
      Vector sums[R * V];
      Tile<R, V>(d, p, sums);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) found(d + r, p + v * kLanes, sums[r * V + v]);
    }
  }

  // Rows d..d+R-1 of J, in groups of kRows, and V vectors of columns. Not inlined: whoever asks for a tile, for a norm
  // or for a sum, gets the same bits, so that the norm is that of what is summed, however positions cancel.
  template <int R, int V>
  __attribute__((noinline)) void Tile(int d, int p, Vector* tile) const {
    const int rows = rows_, columns = columns_, ldg = ldg_;
    const int64_t right = right_, next_row = down_ - columns * right_;
    Vector sums[R][V] = {};
    const float* x[R / kRows];
    for (int i = 0; i < R / kRows; ++i) x[i] = x_ + groups_[d / kRows + i];
    const float* g = gradients_ + p;
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column, g += ldg) {
        Vector vectors[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) vectors[v] = *reinterpret_cast<const Vector*>(g + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vector one = x[r / kRows][r % kRows] - Vector{};
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sums[r][v] += one * vectors[v];
        }
        for (int i = 0; i < R / kRows; ++i) x[i] += right;
      }
      for (int i = 0; i < R / kRows; ++i) x[i] += next_row;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) tile[r * V + v] = sums[r][v];
  }

  const Geometry g_;
  const bool whole_;              // A line of a patch is one run of the image.
  const int run_, runs_;          // Numbers in a run, and runs in a line.
  const int depth_;               // Rows of J, rounded up.
  const bool in_place_;
  const bool is_input_;           // The image is the input.
  const int64_t width_;           // Numbers in a line of the image.
  const int64_t line_step_, run_step_;
  const int ldg_;                 // Columns of J, rounded up.
  std::vector<float> image_, patches_, padded_;
  std::vector<int64_t> groups_;   // Where each group of kRows numbers of a patch begins.
  int rows_, columns_;            // Positions, as they are gone through.
  int64_t right_, down_;          // From one position to the next, and from one row of them.
  const float *x_ = nullptr, *gradients_ = nullptr;
};

}  // namespace tfprivacy_lab

#endif  // TFPRIVACY_LAB_DP_NATIVE_EXAMPLE_OPERANDS_H_

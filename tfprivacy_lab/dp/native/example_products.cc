// Norms and weighted sums of per-example gradients of a kernel, without a gradient leaving the cache.
//
// The gradient of example b is J_b = sum_t x_bt g_bt^T over output pixels t: x_bt is the patch of the input under
// the pixel, (d), g_bt the gradient at it, (p). Each thread lays out the patches of one example at a time, and
// multiplies tile by tile in registers. A dense layer on a sequence is a convolution of 1 x 1.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;

// A tile has kRows x 2 vectors, or 2 kRows x 1, as many as keep the multipliers busy and fit the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#else
constexpr int kLanes = 8, kRows = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int kSpill = 8;     // Runs of floats are copied eight at a time and may read and write so far beyond.
constexpr int kBlocks = 16;   // A sum is made of so many parts at most, in one order, whatever the number of threads.
constexpr int kSmallest = 8;  // Examples of a part, at least.
constexpr int64_t kPartFloats = 1 << 23;  // Numbers in all parts together, or two parts.

int RoundUp(int value, int unit) { return (value + unit - 1) / unit * unit; }

double Total(const Vector& values) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += values[i];
  return total;
}

double SquaredNorm(const float* values, int64_t count) {
  Vector squares = {};
  double total = 0.0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vector value = *reinterpret_cast<const Vector*>(values + i);
    squares += value * value;
    // Floats add up few squares, a double the rest.
    if (i % (64 * kLanes) == 63 * kLanes) {
      total += Total(squares);
      squares = Vector{};
    }
  }
  for (; i < count; ++i) total += static_cast<double>(values[i]) * values[i];
  return total + Total(squares);
}

// What a convolution looks at. Sizes in elements.
struct Geometry {
  int height, width, channels;               // Of the input.
  int rows, columns, filters;                // Of the output.
  std::vector<int> kernel, strides, dilations, padding;  // padding: zeros above and on the left.

  int area() const { return kernel[0] * kernel[1]; }
  int positions() const { return rows * columns; }
  int depth() const { return area() * channels; }
  int padded_height() const { return (rows - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1; }
  int padded_width() const { return (columns - 1) * strides[1] + (kernel[1] - 1) * dilations[1] + 1; }
  bool plain() const { return area() == 1 && strides[0] == 1 && strides[1] == 1 && padding[0] == 0 && padding[1] == 0; }
};

// One example's operands: patches (positions, depth) and gradients (positions, filters), columns padded by zeros.
// Where a patch is made of whole groups of kRows numbers, it is read from the image; otherwise it is laid out first.
class Operands {
 public:
  explicit Operands(const Geometry& geometry)
      : g_(geometry),
        width_(static_cast<int64_t>(geometry.padded_width()) * geometry.channels),
        whole_(geometry.dilations[1] == 1),
        run_(whole_ ? geometry.kernel[1] * geometry.channels : geometry.channels),
        runs_(whole_ ? 1 : geometry.kernel[1]),
        line_step_(geometry.dilations[0] * width_),
        run_step_(static_cast<int64_t>(geometry.dilations[1]) * geometry.channels),
        depth_(RoundUp(geometry.depth(), 2 * kRows)),
        in_place_(run_ % kRows == 0 && depth_ == geometry.depth()),
        ldg_(RoundUp(geometry.filters, kLanes)),
        image_(static_cast<size_t>(geometry.padded_height()) * width_ + kSpill),
        patches_(in_place_ ? 0 : static_cast<size_t>(geometry.positions()) * depth_ + kSpill),
        scaled_(static_cast<size_t>(geometry.positions()) * ldg_) {
    for (int d = 0; d < depth_; d += kRows) {
      const int number = d / run_;
      groups_.push_back(in_place_ ? number / runs_ * line_step_ + number % runs_ * run_step_ + d % run_ : d);
    }
    rows_ = in_place_ ? g_.rows : 1;
    columns_ = in_place_ ? g_.columns : g_.positions();
    right_ = in_place_ ? static_cast<int64_t>(g_.strides[1]) * g_.channels : depth_;
    down_ = g_.strides[0] * width_;
  }

  void Load(const float* input, const float* gradients, float factor) {
    if (in_place_ && g_.plain()) {
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
    if (ldg_ != g_.filters || factor != 1.0f) {
      const int filters = g_.filters, positions = g_.positions();
      for (int t = 0; t < positions; ++t) {
        float* to = scaled_.data() + static_cast<size_t>(t) * ldg_;
        const float* from = gradients + static_cast<size_t>(t) * filters;
        for (int p = 0; p < filters; ++p) to[p] = factor * from[p];
      }
      gradients_ = scaled_.data();
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

  // At least sum_t |x_t| |g_t|, to which any sum of the products is rounded: by Cauchy and Schwarz, from the norm of
  // the image, each pixel of which is in so many patches at most.
  double Largest() const {
    double patches = 1.0;
    for (int i = 0; i < 2; ++i)
      patches *= g_.dilations[i] == 1 ? (g_.kernel[i] + g_.strides[i] - 1) / g_.strides[i] : g_.kernel[i];
    const double image = in_place_ && g_.plain() ? SquaredNorm(x_, static_cast<int64_t>(g_.positions()) * depth_)
                                                 : SquaredNorm(image_.data(), image_.size());
    return std::sqrt(patches * image * SquaredNorm(gradients_, static_cast<int64_t>(g_.positions()) * ldg_));
  }

  // The gradients summed over positions, (filters); as they came, not scaled.
  void Sum(const float* gradients, float* sums) const {
    const int filters = g_.filters, positions = g_.positions();
    std::fill(sums, sums + filters, 0.0f);
    for (int t = 0; t < positions; ++t, gradients += filters)
      for (int p = 0; p < filters; ++p) sums[p] += gradients[p];
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

  // R rows of J at a time, in groups of kRows, and V vectors of columns.
  template <int R, int V, typename Found>
  void Column(int p, Found found) const {
    const int rows = rows_, columns = columns_, ldg = ldg_, depth = g_.depth();
    const int64_t right = right_, next_row = down_ - columns * right_;
    for (int d = 0; d < depth; d += R) {
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
        for (int v = 0; v < V; ++v) found(d + r, p + v * kLanes, sums[r][v]);
    }
  }

  const Geometry g_;
  const int64_t width_;           // Numbers in a line of the padded image.
  const bool whole_;              // A line of a patch is one run of the image.
  const int run_, runs_;          // Numbers in a run, and runs in a line.
  const int64_t line_step_, run_step_;
  const int depth_;               // Rows of J, rounded up.
  const bool in_place_;
  const int ldg_;                 // Columns of J, rounded up.
  std::vector<float> image_, patches_, scaled_;
  std::vector<int64_t> groups_;   // Where each group of kRows numbers of a patch begins.
  int rows_, columns_;            // Positions, as they are gone through.
  int64_t right_, down_;          // From one position to the next, and from one row of them.
  const float *x_ = nullptr, *gradients_ = nullptr;
};

// What both operations share: attributes, and inputs (batch, height, width, channels), (batch, rows, columns, filters).
class ProductsOp : public OpKernel {
 public:
  explicit ProductsOp(OpKernelConstruction* context) : OpKernel(context) {
    for (auto [name, to] : {std::make_pair("kernel_size", &kernel_), std::make_pair("strides", &strides_),
                            std::make_pair("dilations", &dilations_), std::make_pair("padding", &padding_)}) {
      OP_REQUIRES_OK(context, context->GetAttr(name, to));
      const int least = to == &padding_ ? 0 : 1;
      OP_REQUIRES(context, to->size() == 2 && (*to)[0] >= least && (*to)[1] >= least,
                  InvalidArgument("Expected ", name, " to be two whole numbers >= ", least, "."));
    }
  }

 protected:
  bool Check(OpKernelContext* context, Geometry* geometry) const {
    const Tensor &x = context->input(0), &g = context->input(1);
    const bool fits = x.dims() == 4 && g.dims() == 4 && x.dim_size(0) == g.dim_size(0);
    if (fits) {
      auto size = [](const Tensor& tensor, int axis) { return static_cast<int>(tensor.dim_size(axis)); };
      *geometry = {size(x, 1), size(x, 2), size(x, 3), size(g, 1), size(g, 2), size(g, 3),
                   kernel_,    strides_,   dilations_, padding_};
      const bool reaches = geometry->padded_height() - padding_[0] >= 0 && geometry->padded_width() - padding_[1] >= 0;
      if (reaches && x.NumElements() > 0 && g.NumElements() > 0) return true;
      if (reaches && x.dim_size(0) == 0) return true;
    }
    context->CtxFailure(InvalidArgument("Expected inputs (batch, height, width, channels) and gradients (batch, rows, ",
                                        "columns, filters), got ", x.shape().DebugString(), " and ",
                                        g.shape().DebugString(), "."));
    return false;
  }

  // work(first, last) over so many units of work, on TensorFlow's threads.
  template <typename Work>
  static void Share(OpKernelContext* context, int64_t units, int64_t examples_each, const Geometry& geometry,
                    Work work) {
    const int64_t multiplications =
        static_cast<int64_t>(geometry.positions()) * geometry.depth() * RoundUp(geometry.filters, kLanes);
    auto workers = *context->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, units, examples_each * (multiplications / kLanes + 1), work);
  }

 private:
  std::vector<int> kernel_, strides_, dilations_, padding_;
};

class ExampleProductsOp : public ProductsOp {
 public:
  explicit ExampleProductsOp(OpKernelConstruction* context) : ProductsOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
    OP_REQUIRES_OK(context, context->GetAttr("rounding", &rounding_));
    OP_REQUIRES_OK(context, context->GetAttr("bias", &bias_));
  }

  void Compute(OpKernelContext* context) override {
    Geometry geometry;
    if (!Check(context, &geometry)) return;
    const int64_t batch = context->input(0).dim_size(0);
    const int depth = geometry.depth(), filters = geometry.filters;
    Tensor *norms, *sums, *products;
    OP_REQUIRES_OK(context, context->allocate_output(0, {batch}, &norms));
    OP_REQUIRES_OK(context, context->allocate_output(1, {batch, filters}, &sums));
    OP_REQUIRES_OK(context, context->allocate_output(2, {keep_ ? batch : 0, depth, filters}, &products));
    const float *inputs = context->input(0).flat<float>().data(), *gradients = context->input(1).flat<float>().data();
    float *norm = norms->flat<float>().data(), *sum = sums->flat<float>().data(),
          *product = products->flat<float>().data();
    const int64_t input_size = static_cast<int64_t>(geometry.height) * geometry.width * geometry.channels;
    const int64_t gradient_size = static_cast<int64_t>(geometry.positions()) * filters;

    Share(context, batch, 1, geometry, [&, this](int64_t first, int64_t last) {
      Operands operands(geometry);
      for (int64_t b = first; b < last; ++b) {
        const float* g = gradients + b * gradient_size;
        operands.Load(inputs + b * input_size, g, 1.0f);
        operands.Sum(g, sum + b * filters);
        Vector squares = {};
        double total = 0.0;
        int added = 0;
        // Floats add up few squares, a double the rest.
        auto add_square = [&](const Vector& value) {
          squares += value * value;
          if (++added % 64 == 0) {
            total += Total(squares);
            squares = Vector{};
          }
        };
        if (keep_) {
          float* to = product + b * depth * filters;
          operands.Multiply([&](int row, int column, const Vector& value) {
            add_square(value);
            const int columns = std::min(kLanes, filters - column);
            float* place = to + static_cast<int64_t>(row) * filters + column;
            if (row >= depth || columns <= 0) return;
            if (columns == kLanes)
              *reinterpret_cast<Vector*>(place) = value;
            else
              for (int i = 0; i < columns; ++i) place[i] = value[i];
          });
        } else {
          operands.Multiply([&](int, int, const Vector& value) { add_square(value); });
        }
        total += Total(squares);
        if (rounding_ > 0.0f) {
          const double longer = std::sqrt(total) + rounding_ * operands.Largest();
          total = longer * longer;
        }
        if (bias_) total += SquaredNorm(sum + b * filters, filters);
        norm[b] = static_cast<float>(total);
      }
    });
  }

 private:
  bool keep_, bias_;
  float rounding_;
};

class OuterProductNormsOp : public OpKernel {
 public:
  explicit OuterProductNormsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("bias", &bias_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &g = context->input(1);
    OP_REQUIRES(context, x.dims() == 2 && g.dims() == 2 && x.dim_size(0) == g.dim_size(0),
                InvalidArgument("Expected inputs (batch, d) and gradients (batch, p), got ", x.shape().DebugString(),
                                " and ", g.shape().DebugString(), "."));
    const int64_t batch = x.dim_size(0), d = x.dim_size(1), p = g.dim_size(1);
    Tensor* norms;
    OP_REQUIRES_OK(context, context->allocate_output(0, {batch}, &norms));
    const float *inputs = x.flat<float>().data(), *gradients = g.flat<float>().data();
    float* norm = norms->flat<float>().data();
    auto workers = *context->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, batch, (d + p) / 8 + 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b)
        norm[b] = static_cast<float>((SquaredNorm(inputs + b * d, d) + bias_) * SquaredNorm(gradients + b * p, p));
    });
  }

 private:
  bool bias_;
};

class WeightedProductsOp : public ProductsOp {
 public:
  using ProductsOp::ProductsOp;

  void Compute(OpKernelContext* context) override {
    Geometry geometry;
    if (!Check(context, &geometry)) return;
    const int64_t batch = context->input(0).dim_size(0);
    const Tensor& factors = context->input(2);
    OP_REQUIRES(context, factors.dims() == 1 && factors.dim_size(0) == batch,
                InvalidArgument("Expected factors to have shape (", batch, "), got ", factors.shape().DebugString()));
    const int depth = geometry.depth(), filters = geometry.filters;
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, {depth, filters}, &output));
    const float *inputs = context->input(0).flat<float>().data(), *gradients = context->input(1).flat<float>().data(),
                *factor = factors.flat<float>().data();
    const int64_t input_size = static_cast<int64_t>(geometry.height) * geometry.width * geometry.channels;
    const int64_t gradient_size = static_cast<int64_t>(geometry.positions()) * filters;
    const int64_t lda = RoundUp(filters, kLanes), padded = RoundUp(depth, 2 * kRows);
    const int64_t most = std::clamp<int64_t>(kPartFloats / (padded * lda), 2, kBlocks);
    const int64_t examples = std::max<int64_t>(kSmallest, (batch + most - 1) / most);
    const int64_t blocks = (batch + examples - 1) / examples;
    std::vector<float> parts(blocks * padded * lda);

    Share(context, blocks, examples, geometry, [&](int64_t first, int64_t last) {
      Operands operands(geometry);
      for (int64_t block = first; block < last; ++block) {
        float* part = parts.data() + block * padded * lda;
        for (int64_t b = block * examples; b < std::min(batch, (block + 1) * examples); ++b) {
          if (factor[b] == 0.0f) continue;
          operands.Load(inputs + b * input_size, gradients + b * gradient_size, factor[b]);
          operands.Multiply([&](int row, int column, const Vector& value) {
            *reinterpret_cast<Vector*>(part + row * lda + column) += value;
          });
        }
      }
    });
    float* to = output->flat<float>().data();
    std::fill(to, to + static_cast<int64_t>(depth) * filters, 0.0f);
    for (int64_t block = 0; block < blocks; ++block)
      for (int d = 0; d < depth; ++d) {
        const float* part = parts.data() + (block * padded + d) * lda;
        float* row = to + static_cast<int64_t>(d) * filters;
        for (int p = 0; p < filters; ++p) row[p] += part[p];
      }
  }
};

// (depth, filters), as far as the graph knows.
Status Sizes(InferenceContext* context, tensorflow::shape_inference::ShapeHandle* inputs,
             tensorflow::shape_inference::DimensionHandle* depth, tensorflow::shape_inference::DimensionHandle* filters) {
  tensorflow::shape_inference::ShapeHandle gradients;
  std::vector<int> kernel;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 4, inputs));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 4, &gradients));
  TF_RETURN_IF_ERROR(context->GetAttr("kernel_size", &kernel));
  if (kernel.size() != 2) return InvalidArgument("Expected kernel_size to be two whole numbers.");
  TF_RETURN_IF_ERROR(
      context->Multiply(context->Dim(*inputs, 3), static_cast<int64_t>(kernel[0]) * kernel[1], depth));
  *filters = context->Dim(gradients, 3);
  return tensorflow::OkStatus();
}

}  // namespace

REGISTER_OP("TfprivacyLab>ExampleProducts")
    .Input("inputs: float")
    .Input("gradients: float")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .Attr("padding: list(int)")
    .Attr("keep: bool")
    .Attr("rounding: float")
    .Attr("bias: bool")
    .Output("squared_norms: float")
    .Output("sums: float")
    .Output("products: float")
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle inputs;
      tensorflow::shape_inference::DimensionHandle depth, filters;
      bool keep;
      TF_RETURN_IF_ERROR(Sizes(context, &inputs, &depth, &filters));
      TF_RETURN_IF_ERROR(context->GetAttr("keep", &keep));
      const auto batch = context->Dim(inputs, 0);
      context->set_output(0, context->Vector(batch));
      context->set_output(1, context->Matrix(batch, filters));
      context->set_output(2, context->MakeShape({keep ? batch : context->MakeDim(0), depth, filters}));
      return tensorflow::OkStatus();
    })
    .Doc("Per example: the squared norm of J = sum_t x_t g_t^T, the sum of g_t, and, to keep, J itself. A share "
         "rounding of a bound on sum_t |x_t| |g_t| is added to the norm; with bias, that of the sum of g_t counts too.");

REGISTER_OP("TfprivacyLab>OuterProductNorms")
    .Input("inputs: float")
    .Input("gradients: float")
    .Attr("bias: bool")
    .Output("squared_norms: float")
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle inputs;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 2, &inputs));
      context->set_output(0, context->Vector(context->Dim(inputs, 0)));
      return tensorflow::OkStatus();
    })
    .Doc("Per example: the squared norm of x g^T, with bias that of (x, 1) g^T.");

REGISTER_OP("TfprivacyLab>WeightedProducts")
    .Input("inputs: float")
    .Input("gradients: float")
    .Input("factors: float")
    .Attr("kernel_size: list(int)")
    .Attr("strides: list(int)")
    .Attr("dilations: list(int)")
    .Attr("padding: list(int)")
    .Output("sum: float")
    .SetShapeFn([](InferenceContext* context) {
      tensorflow::shape_inference::ShapeHandle inputs;
      tensorflow::shape_inference::DimensionHandle depth, filters;
      TF_RETURN_IF_ERROR(Sizes(context, &inputs, &depth, &filters));
      context->set_output(0, context->Matrix(depth, filters));
      return tensorflow::OkStatus();
    })
    .Doc("sum_b factors_b sum_t x_bt g_bt^T; the same bits whatever the number of threads.");

REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>ExampleProducts").Device(DEVICE_CPU), ExampleProductsOp);
REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>OuterProductNorms").Device(DEVICE_CPU), OuterProductNormsOp);
REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>WeightedProducts").Device(DEVICE_CPU), WeightedProductsOp);

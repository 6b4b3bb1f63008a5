// Norms and weighted sums of per-example gradients of a kernel, without a gradient leaving the cache.
//
// The gradient of example b is J_b = sum_t x_bt g_bt^T over output pixels t: x_bt is the patch of the input under
// the pixel, (d), g_bt the gradient at it, (p). Each thread takes one example at a time. A dense
// layer on a sequence is a convolution of 1 x 1.

#include <algorithm>
#include <cmath>
#include <vector>

#include "example_operands.h"
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
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

using tfprivacy_lab::Doubles;
using tfprivacy_lab::Geometry;
using tfprivacy_lab::kLanes;
using tfprivacy_lab::kRows;
using tfprivacy_lab::Operands;
using tfprivacy_lab::RoundUp;
using tfprivacy_lab::SquaredNorm;
using tfprivacy_lab::Vector;

constexpr int kBlocks = 16;  // A sum is made of so many parts at most, in one order, whatever the number of threads.
constexpr int kSmallest = 8;  // Examples of a part, at least.
constexpr int64_t kPartFloats = 1 << 23;  // Numbers in all parts together, or two parts.

// What both operations share: attributes, inputs (batch, height, width, channels) and gradients (batch, rows, columns,
// filters).
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
    if (x.dims() == 4 && g.dims() == 4 && x.dim_size(0) == g.dim_size(0)) {
      auto size = [](const Tensor& tensor, int axis) { return static_cast<int>(tensor.dim_size(axis)); };
      *geometry = {size(x, 1), size(x, 2), size(x, 3), size(g, 1), size(g, 2), size(g, 3),
                   kernel_,    strides_,   dilations_, padding_};
      if (IsSound(x, g, *geometry)) return true;
    }
    context->CtxFailure(InvalidArgument("Expected inputs (batch, height, width, channels) and gradients (batch, rows, ",
                                        "columns, filters), got ", x.shape().DebugString(), " and ",
                                        g.shape().DebugString(), "."));
    return false;
  }

  // No size is none or too large for what is computed with it, and the output is one of such a convolution.
  static bool IsSound(const Tensor& x, const Tensor& g, const Geometry& geometry) {
    constexpr int64_t kLargest = int64_t{1} << 30;
    for (int axis = 1; axis < 4; ++axis)
      if (x.dim_size(axis) < 1 || x.dim_size(axis) > kLargest || g.dim_size(axis) < 1 || g.dim_size(axis) > kLargest)
        return false;
    double weights = static_cast<double>(geometry.channels) * geometry.filters, image = geometry.channels;
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t length = axis == 0 ? geometry.height : geometry.width, before = geometry.padding[axis];
      const int64_t kernel = static_cast<int64_t>(geometry.kernel[axis] - 1) * geometry.dilations[axis] + 1;
      // Padding on either side is smaller than the kernel, so that every patch touches the input.
      if (before >= kernel || geometry.reach(axis) < before ||
          geometry.reach(axis) > before + length + kernel)
        return false;
      weights *= geometry.kernel[axis];
      image *= geometry.reach(axis);
    }
    return weights < kLargest && image < kLargest && weights / geometry.filters * geometry.positions() < kLargest &&
           static_cast<double>(geometry.filters) * geometry.positions() < kLargest;
  }

  // work(first, last) over so many units of work, on TensorFlow's threads.
  template <typename Work>
  static void Share(OpKernelContext* context, int64_t units, int64_t examples_each, const Geometry& geometry,
                    Work work) {
    const int64_t multiplications =
        static_cast<int64_t>(geometry.positions()) * geometry.depth() * RoundUp(geometry.filters, kLanes);
    auto workers = *context->device()->tensorflow_cpu_worker_threads();
    const int64_t cycles = examples_each * (multiplications / kLanes + 1);
    tensorflow::Shard(workers.num_threads, workers.workers, units, cycles, work);
  }

 private:
  std::vector<int> kernel_, strides_, dilations_, padding_;
};

class ExampleProductsOp : public ProductsOp {
 public:
  explicit ExampleProductsOp(OpKernelConstruction* context) : ProductsOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
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
        operands.Load(inputs + b * input_size, g);
        operands.Sum(g, sum + b * filters);
        Vector squares = {};
        Doubles total;
        int added = 0;
        // Floats add up a tile's squares at most, doubles the rest.
        auto add_square = [&](const Vector& value) {
          squares += value * value;
          if (++added % kRows == 0) {
            total.Add(squares);
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
        double squared = total.Total();
        if (bias_) squared += SquaredNorm(sum + b * filters, filters);
        norm[b] = static_cast<float>(squared);
      }
    });
  }

 private:
  bool keep_, bias_;
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
          operands.Load(inputs + b * input_size, gradients + b * gradient_size);
          operands.Multiply([&](int row, int column, const Vector& value) {
            *reinterpret_cast<Vector*>(part + row * lda + column) += factor[b] * value;
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
Status Sizes(InferenceContext* context, ShapeHandle* inputs, DimensionHandle* depth, DimensionHandle* filters) {
  ShapeHandle gradients;
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
    .Attr("bias: bool")
    .Output("squared_norms: float")
    .Output("sums: float")
    .Output("products: float")
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle inputs;
      DimensionHandle depth, filters;
      bool keep;
      TF_RETURN_IF_ERROR(Sizes(context, &inputs, &depth, &filters));
      TF_RETURN_IF_ERROR(context->GetAttr("keep", &keep));
      const auto batch = context->Dim(inputs, 0);
      context->set_output(0, context->Vector(batch));
      context->set_output(1, context->Matrix(batch, filters));
      context->set_output(2, context->MakeShape({keep ? batch : context->MakeDim(0), depth, filters}));
      return tensorflow::OkStatus();
    })
    .Doc("Per example: the squared norm of J = sum_t x_t g_t^T, the sum of g_t, and, to keep, J itself. With "
         "bias, the norm of the sum of g_t counts too.");

REGISTER_OP("TfprivacyLab>OuterProductNorms")
    .Input("inputs: float")
    .Input("gradients: float")
    .Attr("bias: bool")
    .Output("squared_norms: float")
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle inputs;
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
      ShapeHandle inputs;
      DimensionHandle depth, filters;
      TF_RETURN_IF_ERROR(Sizes(context, &inputs, &depth, &filters));
      context->set_output(0, context->Matrix(depth, filters));
      return tensorflow::OkStatus();
    })
    .Doc("sum_b factors_b J_b, of the J_b whose norms ExampleProducts gives, to the bit; the same whatever the number of threads.");

REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>ExampleProducts").Device(DEVICE_CPU), ExampleProductsOp);
REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>OuterProductNorms").Device(DEVICE_CPU), OuterProductNormsOp);
REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>WeightedProducts").Device(DEVICE_CPU), WeightedProductsOp);

// One operation an assertion, in place of two a tensor that read its length and of those that compare the lengths.

#include <string>
#include <vector>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::errors::InvalidArgument;

class AssertRowsOp : public OpKernel {
 public:
  explicit AssertRowsOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("mark", &mark_));
    OP_REQUIRES_OK(context, context->GetAttr("rows", &rows_));
    OP_REQUIRES_OK(context, context->GetAttr("names", &names_));
    const int first = rows_ < 0 ? 1 : 0;
    OP_REQUIRES(context, static_cast<int>(names_.size()) + first == context->num_inputs(),
                InvalidArgument("Expected a name a tensor, but for the one that rows = -1 takes their number from."));
  }

  void Compute(OpKernelContext* context) override {
    const int first = rows_ < 0 ? 1 : 0;
    for (int i = 0; i < context->num_inputs(); ++i) {
      OP_REQUIRES(context, context->input(i).dims() > 0, InvalidArgument("Expected tensors with a first axis."));
    }
    const int64_t rows = first ? context->input(0).dim_size(0) : rows_;
    for (int i = first; i < context->num_inputs(); ++i) {
      const int64_t got = context->input(i).dim_size(0);
      OP_REQUIRES(context, got == rows,
                  InvalidArgument("[", mark_, "] [", rows, "] [", names_[i - first], "] [", got, "]"));
    }
  }

 private:
  std::string mark_;
  int64_t rows_;
  std::vector<std::string> names_;
};

}  // namespace

REGISTER_OP("TfprivacyLab>AssertRows")
    .Input("tensors: T")
    .Attr("T: list(type) >= 1")
    .Attr("mark: string")
    .Attr("rows: int >= -1")
    .Attr("names: list(string)")
    .SetIsStateful()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext*) { return tensorflow::OkStatus(); })
    .Doc("Stops unless each tensor's first axis has this length, or that of the first tensor if rows is -1.");

REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>AssertRows").Device(tensorflow::DEVICE_CPU), AssertRowsOp);

// Gaussian noise added to tensors in one pass: Philox (Salmon et al. 2011), then Box and Muller (1958).
//
// The draw is that of tfprivacy_lab.dp.training.noise.standard_normal, word for word, so that a seed gives the same
// noise to rounding with and without this operation.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;

constexpr int kWords = 4;         // Of a Philox block.
constexpr int kTogether = 64;     // Blocks made at once; compilers unroll a shorter loop instead of vectorising it.
constexpr int kChunk = 1024;      // Pairs that a thread makes before it adds them: they stay in its cache.
constexpr int kCyclesPerPair = 6;

// Words first, first + 1, ... of the stream that begins at block `counter`, as many as `count`.
class Philox {
 public:
  Philox(uint64_t key, uint64_t low, uint64_t high)
      : key_{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}, low_(low), high_(high) {}

  void Fill(int64_t first, int64_t count, int32_t* to) const {
    int64_t block = first / kWords, skip = first % kWords;
    while (count > 0) {
      uint32_t words[kTogether * kWords];
      Make(block, words);
      const int64_t some = std::min<int64_t>(count, kTogether * kWords - skip);
      std::memcpy(to, words + skip, some * sizeof(int32_t));
      to += some;
      count -= some;
      skip = 0;
      block += kTogether;
    }
  }

 private:
  void Make(uint64_t block, uint32_t* words) const {
    uint32_t a[kTogether], b[kTogether], c[kTogether], d[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      const uint64_t low = low_ + block + i, high = high_ + (low < low_);
      a[i] = static_cast<uint32_t>(low);
      b[i] = static_cast<uint32_t>(low >> 32);
      c[i] = static_cast<uint32_t>(high);
      d[i] = static_cast<uint32_t>(high >> 32);
    }
    uint32_t key0 = key_[0], key1 = key_[1];
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
      for (int i = 0; i < kTogether; ++i) {
        const uint64_t left = uint64_t{0xD2511F53u} * a[i], right = uint64_t{0xCD9E8D57u} * c[i];
        a[i] = static_cast<uint32_t>(right >> 32) ^ b[i] ^ key0;
        b[i] = static_cast<uint32_t>(right);
        c[i] = static_cast<uint32_t>(left >> 32) ^ d[i] ^ key1;
        d[i] = static_cast<uint32_t>(left);
      }
    for (int i = 0; i < kTogether; ++i) {
      words[kWords * i] = a[i];
      words[kWords * i + 1] = b[i];
      words[kWords * i + 2] = c[i];
      words[kWords * i + 3] = d[i];
    }
  }

  const uint32_t key_[2];
  const uint64_t low_, high_;
};

// ln x for normal x in (0, 1], to 2e-7 of it or of 1: Cephes' logf.
inline float Log(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Halves below sqrt(1/2) count as the next power of two down, so that the rest lies around 1.
  const uint32_t shifted = bits - 0x3F3504F3u;
  const float exponent = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const uint32_t rest = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  float m;
  std::memcpy(&m, &rest, sizeof m);
  m -= 1.0f;
  const float square = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * square - 2.12194440e-4f * exponent - 0.5f * square;
  return m + p + 0.693359375f * exponent;
}

// cos and sin of pi t, t in [-1, 1].
inline void CosineSine(float t, float* cosine, float* sine) {
  // Adding 1.5 * 2^23 rounds to a whole number, and leaves it in the lowest bits.
  const float shifted = 2.0f * t + 12582912.0f;
  uint32_t quarter;
  std::memcpy(&quarter, &shifted, sizeof quarter);
  const float r = (t - 0.5f * (shifted - 12582912.0f)) * 3.14159265358979f, square = r * r;
  float s = -1.9515295891e-4f;
  s = s * square + 8.3321608736e-3f;
  s = s * square - 1.6666654611e-1f;
  s = s * square * r + r;
  float c = 2.443315711809948e-5f;
  c = c * square - 1.388731625493765e-3f;
  c = c * square + 4.166664568298827e-2f;
  c = c * square * square - 0.5f * square + 1.0f;
  const bool odd = quarter & 1u;
  const float first = odd ? s : c, second = odd ? c : s;
  *cosine = (quarter + 1u) & 2u ? -first : first;
  *sine = quarter & 2u ? -second : second;
}

class AddNormalNoiseOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    tensorflow::OpInputList values;
    OP_REQUIRES_OK(context, context->input_list("values", &values));
    const Tensor *stddevs, *key, *counter;
    OP_REQUIRES_OK(context, context->input("stddevs", &stddevs));
    OP_REQUIRES_OK(context, context->input("key", &key));
    OP_REQUIRES_OK(context, context->input("counter", &counter));
    const bool fits = stddevs->NumElements() == values.size() && key->NumElements() == 1 && counter->NumElements() == 2;
    OP_REQUIRES(context, fits, InvalidArgument("Expected a standard deviation a tensor, one word of key and two of counter."));
    std::vector<Part> parts;
    int64_t size = 0;
    for (int i = 0; i < values.size(); ++i) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({i}, i, values[i].shape(), &output));
      parts.push_back({size, size + values[i].NumElements(), stddevs->flat<float>()(i), values[i].flat<float>().data(),
                       output->flat<float>().data()});
      size += values[i].NumElements();
    }
    const Philox words(key->flat<uint64_t>()(0), counter->flat<uint64_t>()(0), counter->flat<uint64_t>()(1));
    const int64_t pairs = (size + 1) / 2;
    auto workers = *context->device()->tensorflow_cpu_worker_threads();
    const int64_t chunks = (pairs + kChunk - 1) / kChunk;
    tensorflow::Shard(workers.num_threads, workers.workers, chunks, kChunk * kCyclesPerPair,
                      [&](int64_t first, int64_t last) {
                        for (int64_t chunk = first; chunk < last; ++chunk)
                          AddChunk(words, chunk * kChunk, std::min<int64_t>(pairs, (chunk + 1) * kChunk), pairs, parts);
                      });
  }

 private:
  // A tensor's place in the draw.
  struct Part {
    int64_t begin, end;
    float stddev;
    const float* from;
    float* to;
  };

  static void AddChunk(const Philox& words, int64_t first, int64_t last, int64_t pairs,
                       const std::vector<Part>& parts) {
    int32_t radius_words[kChunk], angle_words[kChunk];
    float cosines[kChunk], sines[kChunk];
    const int count = static_cast<int>(last - first);
    words.Fill(first, count, radius_words);
    words.Fill(pairs + first, count, angle_words);
    for (int i = 0; i < count; ++i) {
      // The sign is left out: 31 bits. Converted before, as the smallest whole number has no positive counterpart.
      const float u = (std::fabs(static_cast<float>(radius_words[i])) + 0.5f) * 0x1p-31f;
      const float radius = std::sqrt(std::max(0.0f, -2.0f * Log(u)));
      float cosine, sine;
      CosineSine(static_cast<float>(angle_words[i]) * 0x1p-31f, &cosine, &sine);
      cosines[i] = radius * cosine;
      sines[i] = radius * sine;
    }
    Add(cosines, first, last, parts);
    Add(sines, pairs + first, pairs + last, parts);
  }

  // Adds draws first..last-1 to where they belong.
  static void Add(const float* draws, int64_t first, int64_t last, const std::vector<Part>& parts) {
    for (const Part& part : parts) {
      const int64_t begin = std::max(first, part.begin), end = std::min(last, part.end);
      const float *from = part.from + (begin - part.begin), *draw = draws + (begin - first);
      float* to = part.to + (begin - part.begin);
      for (int64_t i = 0; i < end - begin; ++i) to[i] = from[i] + part.stddev * draw[i];
    }
  }
};

}  // namespace

REGISTER_OP("TfprivacyLab>AddNormalNoise")
    .Input("values: N * float")
    .Input("stddevs: float")
    .Input("key: uint64")
    .Input("counter: uint64")
    .Attr("N: int >= 1")
    .Output("noisy: N * float")
    .SetShapeFn([](InferenceContext* context) {
      for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->input(i));
      return tensorflow::OkStatus();
    })
    .Doc("values + stddevs * z, z standard Gaussian: one draw over all values in order, keyed as Philox is.");

REGISTER_KERNEL_BUILDER(Name("TfprivacyLab>AddNormalNoise").Device(tensorflow::DEVICE_CPU), AddNormalNoiseOp);

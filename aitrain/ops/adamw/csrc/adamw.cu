// Multi-tensor AdamW and gradient norm in CUDA C++ on torch's stable ABI: one library for every torch from 2.10 on.
//
// A warp holds one block of 256 elements, a lane 8 neighbours: 16-byte accesses in bf16, twice 16 in fp32, and the scale of
// an 8-bit block costs five shuffles. The CPU implementation runs the same arithmetic element by element, for the tests.

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "arithmetic.h"

// weak: torch's CPU builds lack it, and Python resolves every symbol when it loads a library
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace aitrain {

using torch::stable::Tensor;

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xFFFFFFFFu;

// ---------------------------------------------------------------- eight neighbours of a lane

struct Wide {};    // addresses divisible by 16 bytes (8 for codes), whole granules
struct Narrow {};  // anything

__device__ __forceinline__ void load(const float* at, float x[8], int, Wide) {
  const float4 a = reinterpret_cast<const float4*>(at)[0], b = reinterpret_cast<const float4*>(at)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void load(const uint16_t* at, float x[8], int, Wide) {
  const uint4 a = *reinterpret_cast<const uint4*>(at);
  const uint32_t words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = as_float(words[i] << 16);
    x[2 * i + 1] = as_float(words[i] & 0xFFFF0000u);
  }
}

__device__ __forceinline__ float wide_of(float x) { return x; }
__device__ __forceinline__ float wide_of(uint16_t x) { return from_bf16(x); }

template <typename T>
__device__ __forceinline__ void load(const T* at, float x[8], int count, Narrow) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = i < count ? wide_of(at[i]) : 0.0f;
}

__device__ __forceinline__ void store(float* at, const float x[8], const uint32_t*, bool, int, Wide) {
  reinterpret_cast<float4*>(at)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(at)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void store(uint16_t* at, const float x[8], const uint32_t noise[8], bool random, int, Wide) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words[i] = to_bf16(x[2 * i], noise[2 * i], random) |
               uint32_t(to_bf16(x[2 * i + 1], noise[2 * i + 1], random)) << 16;
  *reinterpret_cast<uint4*>(at) = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void store(float* at, const float x[8], const uint32_t*, bool, int count, Narrow) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) at[i] = x[i];
}

__device__ __forceinline__ void store(uint16_t* at, const float x[8], const uint32_t noise[8], bool random, int count,
                                      Narrow) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) at[i] = to_bf16(x[i], noise[i], random);
}

__device__ __forceinline__ void load_codes(const uint8_t* at, uint8_t codes[8], uint8_t, int, Wide) {
  const uint2 a = *reinterpret_cast<const uint2*>(at);
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = uint8_t(a.x >> (8 * i)), codes[4 + i] = uint8_t(a.y >> (8 * i));
}

__device__ __forceinline__ void load_codes(const uint8_t* at, uint8_t codes[8], uint8_t zero, int count, Narrow) {
#pragma unroll
  for (int i = 0; i < 8; ++i) codes[i] = i < count ? at[i] : zero;
}

__device__ __forceinline__ void store_codes(uint8_t* at, const uint8_t codes[8], int, Wide) {
  uint2 a = make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) a.x |= uint32_t(codes[i]) << (8 * i), a.y |= uint32_t(codes[4 + i]) << (8 * i);
  *reinterpret_cast<uint2*>(at) = a;
}

__device__ __forceinline__ void store_codes(uint8_t* at, const uint8_t codes[8], int count, Narrow) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) at[i] = codes[i];
}

// Random bits of 8 elements from number `element` on, which begins a granule on the wide path.
template <typename PATH>
__device__ __forceinline__ void draw(uint64_t element, const Numbers& n, uint32_t stream, uint32_t noise[8]) {
  uint32_t words[4];
  philox(element >> 3, n.step, stream, n.seed, words);
  const int begin = std::is_same<PATH, Wide>::value ? 0 : int(element & 7);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (begin + i == 8) philox((element >> 3) + 1, n.step, stream, n.seed, words);
    const int lane = (begin + i) & 7;
    // written out, so that an index known only at run time does not move the words into local memory
    const uint32_t word = lane < 4 ? (lane < 2 ? words[0] : words[1]) : (lane < 6 ? words[2] : words[3]);
    noise[i] = (word >> (16 * (lane & 1))) & 0xFFFFu;
  }
}

// ---------------------------------------------------------------- kernels

template <bool BF16>
struct Storage {
  using type = float;
};
template <>
struct Storage<true> {
  using type = uint16_t;
};

struct Arguments {
  const int64_t* rows;
  const int64_t* chunks;
  const float* coefficients;
  const float* values;    // 2 x 256: what the codes mean
  const Octave* octaves;  // 2 x (kOctaves + 1)
  Numbers numbers;
  int64_t chunk;
};

template <bool SIGNED, typename PATH>
__device__ __forceinline__ void pack(uint8_t* at, float* scale, const float x[8], const Octave* table, int count,
                                     int lane) {
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, distance));
  if (lane == 0) *scale = largest;
  const float inverse = inverse_of(largest);
  uint8_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) codes[i] = encode<SIGNED>(x[i] * inverse, table);
  if (count > 0) store_codes(at, codes, count, PATH());
}

template <bool PARAM_BF16, bool GRAD_BF16, int MOMENT, typename PATH>
__global__ void __launch_bounds__(32 * kWarps) step_kernel(const Arguments a) {
  using Param = typename Storage<PARAM_BF16>::type;
  using Grad = typename Storage<GRAD_BF16>::type;
  using Moment = typename Storage<MOMENT == 16>::type;
  __shared__ float values[MOMENT == 8 ? 2 * 256 : 1];
  __shared__ Octave octaves[MOMENT == 8 ? 2 * (kOctaves + 1) : 1];
  if (MOMENT == 8) {
    for (int i = threadIdx.x; i < 2 * 256; i += blockDim.x) values[i] = a.values[i];
    for (int i = threadIdx.x; i < 2 * (kOctaves + 1); i += blockDim.x) octaves[i] = a.octaves[i];
    __syncthreads();
  }
  Numbers n = a.numbers;
  n.clip = a.coefficients[0], n.decay = a.coefficients[1], n.step_size = a.coefficients[2];
  n.inverse_root = a.coefficients[3], n.step = uint32_t(a.coefficients[4]);
  const int64_t entry = a.chunks[blockIdx.x];
  const int64_t* row = a.rows + (entry >> 32) * kColumns;
  const int64_t size = row[kSize], begin = (entry & 0xFFFFFFFF) * a.chunk;
  const uint64_t offset = uint64_t(row[kOffset]);
  Param* params = reinterpret_cast<Param*>(row[kParam]);
  const Grad* grads = reinterpret_cast<const Grad*>(row[kGrad]);
  const int lane = threadIdx.x & 31;
  for (int64_t base = begin + (threadIdx.x >> 5) * kBlock; base < begin + a.chunk && base < size;
       base += kWarps * kBlock) {  // the condition is the same for a whole warp: its shuffles meet
    const int64_t at = base + lane * kGranule;
    const int count = at >= size ? 0 : size - at < kGranule ? int(size - at) : kGranule;
    float param[8] = {}, grad[8] = {}, first[8] = {}, second[8] = {};
    if (count > 0) {
      load(params + at, param, count, PATH());
      load(grads + at, grad, count, PATH());
    }
    if constexpr (MOMENT == 8) {
      uint8_t codes[2][8];
      if (count > 0) {
        load_codes(reinterpret_cast<const uint8_t*>(row[kFirst]) + at, codes[0], 127, count, PATH());
        load_codes(reinterpret_cast<const uint8_t*>(row[kSecond]) + at, codes[1], 0, count, PATH());
        const float scales[2] = {reinterpret_cast<const float*>(row[kFirstScale])[base / kBlock],
                                 reinterpret_cast<const float*>(row[kSecondScale])[base / kBlock]};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          first[i] = values[codes[0][i]] * scales[0];
          second[i] = values[256 + codes[1][i]] * scales[1];
        }
      }
    } else if (count > 0) {
      load(reinterpret_cast<const Moment*>(row[kFirst]) + at, first, count, PATH());
      load(reinterpret_cast<const Moment*>(row[kSecond]) + at, second, count, PATH());
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) update(param[i], grad[i], first[i], second[i], n);
    uint32_t noise[8] = {};
    if (PARAM_BF16 && n.stochastic) draw<PATH>(offset + at, n, kOfParam, noise);
    if (count > 0) store(params + at, param, noise, n.stochastic, count, PATH());
    if constexpr (MOMENT == 8) {
      // lanes behind the end hold zeros and take part in the maximum
      if (count < kGranule) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (i >= count) first[i] = second[i] = 0.0f;
      }
      pack<true, PATH>(reinterpret_cast<uint8_t*>(row[kFirst]) + at,
                       reinterpret_cast<float*>(row[kFirstScale]) + base / kBlock, first, octaves, count, lane);
      pack<false, PATH>(reinterpret_cast<uint8_t*>(row[kSecond]) + at,
                        reinterpret_cast<float*>(row[kSecondScale]) + base / kBlock, second, octaves + kOctaves + 1,
                        count, lane);
    } else if (count > 0) {
      if (MOMENT == 16 && n.stochastic) draw<PATH>(offset + at, n, kOfFirst, noise);
      store(reinterpret_cast<Moment*>(row[kFirst]) + at, first, noise, n.stochastic, count, PATH());
      if (MOMENT == 16 && n.stochastic) draw<PATH>(offset + at, n, kOfSecond, noise);
      store(reinterpret_cast<Moment*>(row[kSecond]) + at, second, noise, n.stochastic, count, PATH());
    }
  }
}

// Everything in fp32: a lane takes 4 neighbours, so one access of a warp is 512 bytes without a gap. With 8 of them each
// access would touch every second half of a sector, and the stores would cost twice.
__global__ void __launch_bounds__(32 * kWarps) step_fp32_kernel(const Arguments a) {
  Numbers n = a.numbers;
  n.clip = a.coefficients[0], n.decay = a.coefficients[1], n.step_size = a.coefficients[2];
  n.inverse_root = a.coefficients[3];
  const int64_t entry = a.chunks[blockIdx.x];
  const int64_t* row = a.rows + (entry >> 32) * kColumns;
  const int64_t begin = (entry & 0xFFFFFFFF) * a.chunk;
  const int64_t end = row[kSize] < begin + a.chunk ? row[kSize] : begin + a.chunk;
  float* columns[4] = {reinterpret_cast<float*>(row[kParam]), reinterpret_cast<float*>(row[kGrad]),
                       reinterpret_cast<float*>(row[kFirst]), reinterpret_cast<float*>(row[kSecond])};
#pragma unroll 2
  for (int64_t at = begin + threadIdx.x * 4; at < end; at += 32 * kWarps * 4) {
    float x[4][4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float4 found = *reinterpret_cast<const float4*>(columns[c] + at);
      x[c][0] = found.x, x[c][1] = found.y, x[c][2] = found.z, x[c][3] = found.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) update(x[0][i], x[1][i], x[2][i], x[3][i], n);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (c != 1) *reinterpret_cast<float4*>(columns[c] + at) = make_float4(x[c][0], x[c][1], x[c][2], x[c][3]);
  }
}

template <bool GRAD_BF16, typename PATH>
__global__ void __launch_bounds__(32 * kWarps)
    squares_kernel(const int64_t* rows, const int64_t* chunks, int64_t number, int64_t chunk, float* partials) {
  using Grad = typename Storage<GRAD_BF16>::type;
  float total = 0.0f;
  for (int64_t index = blockIdx.x; index < number; index += gridDim.x) {
    const int64_t entry = chunks[index];
    const int64_t* row = rows + (entry >> 32) * kColumns;
    const int64_t begin = (entry & 0xFFFFFFFF) * chunk;
    const int64_t end = row[kSize] < begin + chunk ? row[kSize] : begin + chunk;
    const Grad* grads = reinterpret_cast<const Grad*>(row[kGrad]);
    for (int64_t at = begin + threadIdx.x * kGranule; at < end; at += 32 * kWarps * kGranule) {
      float grad[8];
      load(grads + at, grad, end - at < kGranule ? int(end - at) : kGranule, PATH());
#pragma unroll
      for (int i = 0; i < 8; ++i) total += grad[i] * grad[i];
    }
  }
  __shared__ float sums[kWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(kAll, total, distance);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kWarps; ++i) total += sums[i];
    partials[blockIdx.x] = total;
  }
}

// ---------------------------------------------------------------- the same on the CPU

template <bool BF16>
float get(int64_t address, int64_t i) {
  if (BF16) return from_bf16(reinterpret_cast<const uint16_t*>(address)[i]);
  return reinterpret_cast<const float*>(address)[i];
}

template <bool BF16>
void put(int64_t address, int64_t i, float x, uint64_t element, uint32_t stream, const Numbers& n) {
  if (!BF16) {
    reinterpret_cast<float*>(address)[i] = x;
    return;
  }
  uint32_t words[4] = {};
  if (n.stochastic) philox(element >> 3, n.step, stream, n.seed, words);
  reinterpret_cast<uint16_t*>(address)[i] = to_bf16(x, lane_bits(words, int(element & 7)), n.stochastic);
}

template <bool SIGNED>
void pack_on_cpu(int64_t codes, int64_t scales, int64_t base, const std::vector<float>& x, const Octave* table) {
  float largest = 0.0f;
  for (const float each : x) largest = std::max(largest, std::fabs(each));
  reinterpret_cast<float*>(scales)[base / kBlock] = largest;
  for (size_t i = 0; i < x.size(); ++i)
    reinterpret_cast<uint8_t*>(codes)[base + int64_t(i)] = encode<SIGNED>(x[i] * inverse_of(largest), table);
}

template <bool PARAM_BF16, bool GRAD_BF16, int MOMENT>
void step_on_cpu(const Arguments& a, int64_t number) {
  Numbers n = a.numbers;
  n.clip = a.coefficients[0], n.decay = a.coefficients[1], n.step_size = a.coefficients[2];
  n.inverse_root = a.coefficients[3], n.step = uint32_t(a.coefficients[4]);
  for (int64_t index = 0; index < number; ++index) {
    const int64_t* row = a.rows + (a.chunks[index] >> 32) * kColumns;
    const int64_t begin = (a.chunks[index] & 0xFFFFFFFF) * a.chunk, end = std::min(row[kSize], begin + a.chunk);
    for (int64_t base = begin; base < end; base += kBlock) {
      std::vector<float> moments[2];
      for (int64_t i = base; i < std::min(end, base + kBlock); ++i) {
        float param = get<PARAM_BF16>(row[kParam], i), first, second;
        if (MOMENT == 8) {
          first = a.values[reinterpret_cast<const uint8_t*>(row[kFirst])[i]] *
                  reinterpret_cast<const float*>(row[kFirstScale])[i / kBlock];
          second = a.values[256 + reinterpret_cast<const uint8_t*>(row[kSecond])[i]] *
                   reinterpret_cast<const float*>(row[kSecondScale])[i / kBlock];
        } else {
          first = get<MOMENT == 16>(row[kFirst], i), second = get<MOMENT == 16>(row[kSecond], i);
        }
        update(param, get<GRAD_BF16>(row[kGrad], i), first, second, n);
        const uint64_t element = uint64_t(row[kOffset] + i);
        put<PARAM_BF16>(row[kParam], i, param, element, kOfParam, n);
        if (MOMENT == 8) {
          moments[0].push_back(first), moments[1].push_back(second);
        } else {
          put<MOMENT == 16>(row[kFirst], i, first, element, kOfFirst, n);
          put<MOMENT == 16>(row[kSecond], i, second, element, kOfSecond, n);
        }
      }
      if (MOMENT == 8) {
        pack_on_cpu<true>(row[kFirst], row[kFirstScale], base, moments[0], a.octaves);
        pack_on_cpu<false>(row[kSecond], row[kSecondScale], base, moments[1], a.octaves + kOctaves + 1);
      }
    }
  }
}

// ---------------------------------------------------------------- ops

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "adamw: launch failed: ", cudaGetErrorString(error));
}

Arguments arguments(const Tensor& rows, const Tensor& chunks, const Tensor& coefficients, const Tensor& values,
                    const Tensor& octaves, double beta1, double beta2, double eps, int64_t seed, bool stochastic, int64_t chunk) {
  STD_TORCH_CHECK(octaves.numel() == 2 * (kOctaves + 1) * 4 && values.numel() == 512, "adamw: tables of another size");
  STD_TORCH_CHECK(chunk % kBlock == 0, "adamw: chunks are whole blocks of 256");
  Arguments a{};
  a.rows = rows.const_data_ptr<int64_t>();
  a.chunks = chunks.const_data_ptr<int64_t>();
  a.coefficients = coefficients.const_data_ptr<float>();
  a.values = values.const_data_ptr<float>();
  a.octaves = reinterpret_cast<const Octave*>(octaves.const_data_ptr<float>());
  a.numbers.rest1 = float(1.0 - beta1);
  a.numbers.beta2 = float(beta2);
  a.numbers.rest2 = float(1.0 - beta2);
  a.numbers.eps = float(eps);
  a.numbers.seed = uint64_t(seed);
  a.numbers.stochastic = stochastic;
  a.chunk = chunk;
  return a;
}

// Calls `run.template operator()<...>()` with the types that are asked for.
template <typename RUN>
void choose(bool param_bf16, bool grad_bf16, int64_t moment, const RUN& run) {
#define AITRAIN_CASE(P, G, M) \
  if (param_bf16 == P && grad_bf16 == G && moment == M) return run.template operator()<P, G, M>();
#define AITRAIN_MOMENTS(P, G) AITRAIN_CASE(P, G, 32) AITRAIN_CASE(P, G, 16) AITRAIN_CASE(P, G, 8)
  AITRAIN_MOMENTS(false, false)
  AITRAIN_MOMENTS(false, true)
  AITRAIN_MOMENTS(true, false)
  AITRAIN_MOMENTS(true, true)
#undef AITRAIN_MOMENTS
#undef AITRAIN_CASE
  STD_TORCH_CHECK(false, "adamw: moments have 32, 16 or 8 bits");
}

struct OnGpu {
  const Arguments& a;
  unsigned programs;
  cudaStream_t stream;
  bool wide;
  template <bool P, bool G, int M>
  void operator()() const {
    if constexpr (!P && !G && M == 32) {
      if (wide) {
        step_fp32_kernel<<<programs, 32 * kWarps, 0, stream>>>(a);
        return;
      }
    }
    if (wide)
      step_kernel<P, G, M, Wide><<<programs, 32 * kWarps, 0, stream>>>(a);
    else
      step_kernel<P, G, M, Narrow><<<programs, 32 * kWarps, 0, stream>>>(a);
  }
};

struct OnCpu {
  const Arguments& a;
  int64_t programs;
  template <bool P, bool G, int M>
  void operator()() const {
    step_on_cpu<P, G, M>(a, programs);
  }
};

void step_cuda(Tensor rows, Tensor chunks, Tensor coefficients, Tensor values, Tensor octaves, double beta1,
               double beta2, double eps, int64_t seed, bool param_bf16, bool grad_bf16, int64_t moment,
               bool stochastic, bool wide, int64_t chunk) {
  torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const Arguments a = arguments(rows, chunks, coefficients, values, octaves, beta1, beta2, eps, seed, stochastic, chunk);
  choose(param_bf16, grad_bf16, moment, OnGpu{a, unsigned(chunks.numel()), stream_of(rows), wide});
  check_launch();
}

void step_cpu(Tensor rows, Tensor chunks, Tensor coefficients, Tensor values, Tensor octaves, double beta1,
              double beta2, double eps, int64_t seed, bool param_bf16, bool grad_bf16, int64_t moment, bool stochastic,
              bool wide, int64_t chunk) {
  (void)wide;
  const Arguments a = arguments(rows, chunks, coefficients, values, octaves, beta1, beta2, eps, seed, stochastic, chunk);
  choose(param_bf16, grad_bf16, moment, OnCpu{a, chunks.numel()});
}

void squares_cuda(Tensor rows, Tensor chunks, Tensor partials, bool grad_bf16, bool wide, int64_t chunk) {
  torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const auto run = [&](auto kernel) {
    kernel<<<unsigned(partials.numel()), 32 * kWarps, 0, stream_of(rows)>>>(
        rows.const_data_ptr<int64_t>(), chunks.const_data_ptr<int64_t>(), chunks.numel(), chunk,
        partials.mutable_data_ptr<float>());
  };
  if (grad_bf16)
    wide ? run(squares_kernel<true, Wide>) : run(squares_kernel<true, Narrow>);
  else
    wide ? run(squares_kernel<false, Wide>) : run(squares_kernel<false, Narrow>);
  check_launch();
}

void squares_cpu(Tensor rows, Tensor chunks, Tensor partials, bool grad_bf16, bool wide, int64_t chunk) {
  (void)wide;
  const int64_t* table = rows.const_data_ptr<int64_t>();
  const int64_t* entries = chunks.const_data_ptr<int64_t>();
  float* sums = partials.mutable_data_ptr<float>();
  std::fill(sums, sums + partials.numel(), 0.0f);
  for (int64_t index = 0; index < chunks.numel(); ++index) {
    const int64_t* row = table + (entries[index] >> 32) * kColumns;
    const int64_t begin = (entries[index] & 0xFFFFFFFF) * chunk;
    for (int64_t i = begin; i < std::min(row[kSize], begin + chunk); ++i) {
      const float grad = grad_bf16 ? get<true>(row[kGrad], i) : get<false>(row[kGrad], i);
      sums[index % partials.numel()] += grad * grad;
    }
  }
}

}  // namespace aitrain

STABLE_TORCH_LIBRARY_FRAGMENT(aitrain_cuda, m) {
  m.def(
      "adamw_step(Tensor rows, Tensor chunks, Tensor coefficients, Tensor values, Tensor octaves, float beta1, "
      "float beta2, float eps, int seed, bool param_bf16, bool grad_bf16, int moment, bool stochastic, bool wide, "
      "int chunk) -> ()");
  m.def(
      "adamw_squares(Tensor rows, Tensor chunks, Tensor(a!) partials, bool grad_bf16, bool wide, int chunk) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(aitrain_cuda, CUDA, m) {
  m.impl("adamw_step", TORCH_BOX(&aitrain::step_cuda));
  m.impl("adamw_squares", TORCH_BOX(&aitrain::squares_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(aitrain_cuda, CPU, m) {
  m.impl("adamw_step", TORCH_BOX(&aitrain::step_cpu));
  m.impl("adamw_squares", TORCH_BOX(&aitrain::squares_cpu));
}

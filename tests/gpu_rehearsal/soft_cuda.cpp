// A device with the name "cuda" for builds of torch without CUDA. It uses CPU memory and CPU kernels, and follows the
// rules of a GPU.
//
// A tensor of the device owns CPU memory and has the dispatch key CUDA. Operators for which this file defines no kernel
// run in `run_on_cpu`: it checks that all tensors are on the same device, calls the CPU kernel on tensors that share
// their memory, and moves the results back to the device. All operations are complete when a call returns, so streams
// and events do nothing. `soft_cuda.py` loads the library and replaces the functions of torch.cuda.

#include <ATen/ATen.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/col_indices_native.h>
#include <ATen/ops/crow_indices_native.h>
#include <ATen/ops/values_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>

#include <cstdio>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace {

using namespace c10;

constexpr int kDevices = 2;
const Device kCpu(DeviceType::CPU);

// The current device and the streams of each thread, as with CUDA.

struct Guard final : impl::DeviceGuardImplInterface {
  static thread_local int16_t current;
  static thread_local std::array<StreamId, kDevices> streams;

  static Stream stream(Device device, StreamId id) {
    return Stream(Stream::UNSAFE, Device(DeviceType::CUDA, device.index() < 0 ? current : device.index()), id);
  }

  DeviceType type() const override { return DeviceType::CUDA; }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "invalid device ordinal ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  Device exchangeDevice(Device device) const override {
    Device before = getDevice();
    setDevice(device);
    return before;
  }

  Stream getStream(Device device) const noexcept override {
    return stream(device, streams[device.index() < 0 ? current : device.index()]);
  }
  Stream getDefaultStream(Device device) const override { return stream(device, 0); }
  Stream getNewStream(Device device, int) const override { return stream(device, 0); }
  Stream exchangeStream(Stream next) const noexcept override {
    StreamId before = std::exchange(streams[next.device_index()], next.id());
    return stream(next.device(), before);
  }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}

  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
};
thread_local int16_t Guard::current = 0;
thread_local std::array<StreamId, kDevices> Guard::streams = {};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// CPU memory, counted by device.

std::atomic<size_t> live[kDevices], peak[kDevices];

void count_memory(int device, size_t bytes) {
  size_t now = live[device] += bytes, before = peak[device];
  while (before < now && !peak[device].compare_exchange_weak(before, now)) {
  }
}

struct Block {
  DataPtr data;
  size_t bytes;
  int device;
};

struct DeviceAllocator final : Allocator {
  DataPtr allocate(size_t bytes) override {
    auto* block = new Block{GetCPUAllocator()->allocate(bytes), bytes, Guard::current};
    count_memory(block->device, bytes);
    return {block->data.get(), block, &release, Device(DeviceType::CUDA, Guard::current)};
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    live[block->device] -= block->bytes;
    delete block;
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} device_allocator;

struct PinnedAllocator final : Allocator {  // CPU memory that `is_pinned` recognises
  std::mutex lock;
  std::unordered_set<const void*> pinned;

  DataPtr allocate(size_t bytes) override;
  bool has(const void* pointer) {
    std::lock_guard<std::mutex> guard(lock);
    return pinned.count(pointer);
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} pinned_allocator;

DataPtr PinnedAllocator::allocate(size_t bytes) {
  auto* data = new DataPtr(GetCPUAllocator()->allocate(bytes));
  std::lock_guard<std::mutex> guard(lock);
  pinned.insert(data->get());
  auto release = [](void* context) {
    auto* data = static_cast<DataPtr*>(context);
    std::lock_guard<std::mutex> guard(pinned_allocator.lock);
    pinned_allocator.pinned.erase(data->get());
    delete data;
  };
  return {data->get(), data, release, kCpu};
}

struct Registration {
  Registration() { SetAllocator(DeviceType::CUDA, &device_allocator, 100); }
} registration;

// Hooks that torch requires of a CUDA build.

struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex current_device() const override { return Guard::current; }
  DeviceIndex getCurrentDevice() const override { return Guard::current; }
  void setCurrentDevice(DeviceIndex device) const override { Guard::current = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return std::exchange(Guard::current, device < 0 ? Guard::current : device);
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
  bool isPinnedPtr(const void* pointer) const override { return pinned_allocator.has(pointer); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  Device getDeviceFromPtr(void*) const override { return Device(DeviceType::CUDA, 0); }
  void deviceSynchronize(DeviceIndex) const override {}
  std::string showConfig() const override { return "a software device\n"; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  long versionCuDNN() const override { return 91000; }
  long versionRuntimeCuDNN() const override { return 91000; }
  double batchnormMinEpsilonCuDNN() const override { return 0; }
};

struct Timer final : c10d::Timer {  // required by the statistics of DistributedDataParallel
  explicit Timer(Device) {}
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    auto from = getTimestamp(start), to = getTimestamp(end);
    return from && to ? std::optional(*to - *from) : std::nullopt;
  }
};

// Conversion between tensors of the device and tensors of the CPU that share memory.

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == DeviceType::CUDA; }

struct Shared {  // a storage shared with a tensor of the other device; `bytes` is counted for `device`
  Storage storage;
  size_t bytes;
  int device;
};

// Returns a tensor of `device` with the same memory. `owned`: a CPU kernel has allocated the memory for the device.
at::Tensor shared(const at::Tensor& tensor, Device device, bool owned = false) {
  TORCH_CHECK(tensor.has_storage(), "soft cuda: a tensor without storage cannot be used on ", device);
  const Storage& storage = tensor.storage();
  auto* context = new Shared{storage, owned ? storage.nbytes() : 0, owned ? device.index() : 0};
  if (owned) count_memory(context->device, context->bytes);
  auto release = [](void* context) {
    auto* shared = static_cast<Shared*>(context);
    live[shared->device] -= shared->bytes;
    delete shared;
  };
  DataPtr data(const_cast<void*>(storage.data()), context, release, device);
  Allocator* allocator = device.is_cpu() ? GetCPUAllocator() : &device_allocator;
  Storage twin(make_intrusive<StorageImpl>(StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data),
                                           allocator, /*resizable=*/true));
  auto key = device.is_cpu() ? DispatchKey::CPU : DispatchKey::CUDA;
  auto out = at::detail::make_tensor<TensorImpl>(std::move(twin), DispatchKeySet(key), tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) out._set_conj(true);
  if (tensor.is_neg()) out._set_neg(true);
  return out;
}

at::Tensor on_cpu(const at::Tensor& tensor) { return on_device(tensor) ? shared(tensor, kCpu) : tensor; }

// Operators without a separate kernel.

std::string name_of(const OperatorHandle& op) {
  const auto& name = op.schema().operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

bool takes_indices_of_the_cpu(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::index.Tensor", "aten::index.Tensor_out", "aten::_unsafe_index.Tensor",
      "aten::index_put",    "aten::index_put_",       "aten::index_put.out",
      "aten::_index_put_impl_", "aten::_index_put_impl"};
  return names.count(name);
}

struct Argument {
  at::Tensor tensor;
  size_t position;  // in the operator's signature
};

void check_devices(const std::string& name, const std::vector<Argument>& arguments) {
  std::optional<Device> device;
  for (const auto& [tensor, position] : arguments) {
    bool cpu = tensor.device().is_cpu();
    if (cpu && tensor.dim() == 0) continue;  // kernels accept numbers on the CPU
    if (cpu && position == 1 && takes_indices_of_the_cpu(name)) continue;
    if (!device) device = tensor.device();
    TORCH_CHECK(*device == tensor.device(), "Expected all tensors to be on the same device, but found at least two ",
                "devices, ", *device, " and ", tensor.device(), "! (", name, ")");
  }
}

// Names of the operators that have run on the device, with the dtypes of their tensors.
std::mutex operators_lock;
std::unordered_map<std::string, std::unordered_set<std::string>> operators;

void record(const std::string& name, const std::vector<Argument>& arguments) {
  std::lock_guard<std::mutex> guard(operators_lock);
  auto& dtypes = operators[name];
  for (const auto& [tensor, position] : arguments)
    if (on_device(tensor)) dtypes.insert(std::string(tensor.dtype().name()));
}

Device with_index(Device device) {
  return device.index() < 0 ? Device(DeviceType::CUDA, Guard::current) : device;
}

void run_on_cpu(const OperatorHandle& op, torch::jit::Stack* stack) {
  size_t count = op.schema().arguments().size(), begin = stack->size() - count;
  std::vector<Argument> arguments;
  std::vector<std::pair<at::Tensor, at::Tensor>> twins;  // tensors of the device, and CPU tensors that share their memory
  std::optional<Device> device;

  auto to_cpu = [&](const at::Tensor& tensor, size_t position) -> at::Tensor {
    if (!tensor.defined()) return tensor;
    arguments.push_back({tensor, position});
    if (!on_device(tensor)) return tensor;
    if (!device) device = tensor.device();
    for (const auto& [own, twin] : twins)
      if (own.is_same(tensor)) return twin;
    twins.emplace_back(tensor, shared(tensor, kCpu));
    return twins.back().second;
  };

  torch::jit::Stack values;
  for (size_t i = 0; i < count; ++i) {
    IValue value = (*stack)[begin + i];
    if (value.isTensor()) {
      value = to_cpu(value.toTensor(), i);
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> tensors;
      for (const auto& tensor : value.toTensorVector()) tensors.push_back(to_cpu(tensor, i));
      value = tensors;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> tensors;
      for (std::optional<at::Tensor> tensor : value.toOptionalTensorList())
        tensors.push_back(tensor && tensor->defined() ? std::optional(to_cpu(*tensor, i)) : std::nullopt);
      value = tensors;
    } else if (value.isDevice()) {
      if (!device) device = value.toDevice();
      value = kCpu;
    }
    values.push_back(std::move(value));
  }
  std::string name = name_of(op);
  check_devices(name, arguments);
  record(name, arguments);
  Device home = with_index(device.value_or(Device(DeviceType::CUDA)));

  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &values);

  auto to_device = [&](const at::Tensor& tensor) -> at::Tensor {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    bool view = false;
    for (const auto& [own, twin] : twins) {
      if (twin.is_same(tensor)) return own;
      view = view || twin.storage().data() == tensor.storage().data();
    }
    return shared(tensor, home, /*owned=*/!view);
  };
  for (const auto& [own, twin] : twins) {  // outputs that the kernel has resized get the new memory
    if (own.sizes().equals(twin.sizes()) && own.strides().equals(twin.strides()) &&
        own.storage().data() == twin.storage().data())
      continue;
    at::Tensor fresh = shared(twin, home, /*owned=*/true);
    auto* impl = own.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(fresh.storage());
    impl->set_sizes_and_strides(fresh.sizes(), fresh.strides(), fresh.storage_offset());
  }
  stack->resize(begin);
  for (auto& value : values) {
    if (value.isTensor()) {
      stack->push_back(to_device(value.toTensor()));
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> tensors;
      for (const auto& tensor : value.toTensorVector()) tensors.push_back(to_device(tensor));
      stack->push_back(tensors);
    } else {
      stack->push_back(value);
    }
  }
}

// The same in float32 instead of float16, for which convolutions on the CPU take minutes.
void run_in_float32(const OperatorHandle& op, torch::jit::Stack* stack) {
  auto is_half = [](const IValue& value) {
    return value.isTensor() && value.toTensor().defined() && value.toTensor().scalar_type() == at::kHalf;
  };
  auto arguments = stack->end() - op.schema().arguments().size();
  bool half = std::any_of(arguments, stack->end(), is_half);
  if (half)
    for (auto value = arguments; value != stack->end(); ++value)
      if (is_half(*value)) *value = value->toTensor().to(at::kFloat);
  run_on_cpu(op, stack);
  if (half)
    for (auto value = stack->end() - op.schema().returns().size(); value != stack->end(); ++value)
      if (value->isTensor() && value->toTensor().defined()) *value = value->toTensor().to(at::kHalf);
}

// Operators that allocate, copy or view, which `run_on_cpu` and the CPU kernels use.

using MaybeDtype = std::optional<ScalarType>;
using MaybeLayout = std::optional<Layout>;
using MaybeDevice = std::optional<Device>;

struct OnDevice {  // sets the current device until the end of a scope
  int16_t before = Guard::current;
  explicit OnDevice(MaybeDevice device) {
    Guard::current = with_index(device.value_or(Device(DeviceType::CUDA))).index();
  }
  ~OnDevice() { Guard::current = before; }
};

at::Tensor empty(SymIntArrayRef size, MaybeDtype dtype, MaybeLayout, MaybeDevice device, std::optional<bool>,
                 std::optional<MemoryFormat> format) {
  OnDevice scope(device);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_allocator,
                                   DispatchKeySet(DispatchKey::CUDA), dtype_or_default(dtype), format);
}

at::Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, MaybeDtype dtype, MaybeLayout, MaybeDevice device,
                         std::optional<bool>) {
  OnDevice scope(device);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &device_allocator, DispatchKeySet(DispatchKey::CUDA),
                                           dtype_or_default(dtype));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool) {
  at::Tensor to = on_cpu(self), from = on_cpu(source);
  at::AutoDispatchBelowADInplaceOrView guard;
  to.copy_(from);
  return self;
}

at::Scalar local_scalar(const at::Tensor& self) { return at::_local_scalar_dense(on_cpu(self)); }

at::Tensor strided(const at::Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
  auto out = at::detail::make_tensor<TensorImpl>(TensorImpl::VIEW, Storage(self.storage()), self.key_set(),
                                                 self.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset.value_or(self.storage_offset()));
  return out;
}

at::Tensor view(const at::Tensor& self, SymIntArrayRef size) {
  auto sizes = at::infer_size_dv(C10_AS_INTARRAYREF_SLOW(size), self.numel());
  auto strides = at::detail::computeStride(self.sizes(), self.strides(), sizes);
  TORCH_CHECK(strides, "view size is not compatible with input tensor's size and stride; use .reshape(...) instead.");
  return strided(self, IntArrayRef(sizes), IntArrayRef(*strides), std::nullopt);
}

at::Tensor reshape_alias(const at::Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return strided(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), std::nullopt);
}

at::Tensor view_dtype(const at::Tensor& self, ScalarType dtype) {
  return shared(on_cpu(self).view(dtype), self.device());
}

at::Tensor& set_memory(at::Tensor& self, const Storage& storage, IntArrayRef size, IntArrayRef stride, int64_t offset) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_strided(at::Tensor& self, Storage storage, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  return set_memory(self, storage, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
}

at::Tensor& set_storage(at::Tensor& self, Storage storage) {
  int64_t count = storage.nbytes() / self.itemsize(), one = 1;
  return set_memory(self, storage, IntArrayRef(count), IntArrayRef(one), 0);
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_memory(self, source.storage(), source.sizes(), source.strides(), source.storage_offset());
}

const at::Tensor& resize_(const at::Tensor& self, SymIntArrayRef size, std::optional<MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (self.sizes().equals(sizes)) return self;
  auto fresh = at::empty(sizes, self.options());
  int64_t kept = std::min(fresh.numel(), self.numel());
  if (kept && self.is_contiguous())
    std::memcpy(fresh.mutable_data_ptr(), self.const_data_ptr(), kept * self.itemsize());
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides(), 0);
  return self;
}

// Batch normalisation of cuDNN, for which the CPU has no kernel.

using MaybeTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cudnn_batch_norm(
    const at::Tensor& input, const at::Tensor& weight, const MaybeTensor& bias, const MaybeTensor& mean,
    const MaybeTensor& var, bool training, double momentum, double epsilon) {
  auto [out, saved_mean, saved_var] =
      at::native_batch_norm(input, weight, bias, mean, var, training, momentum, epsilon);
  return {out, saved_mean, saved_var, at::empty({0}, input.options().dtype(at::kByte))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cudnn_batch_norm_backward(
    const at::Tensor& input, const at::Tensor& grad, const at::Tensor& weight, const MaybeTensor& mean,
    const MaybeTensor& var, const MaybeTensor& saved_mean, const MaybeTensor& saved_var, double epsilon,
    const at::Tensor&) {
  return at::native_batch_norm_backward(grad, input, weight, mean, var, saved_mean, saved_var, /*train=*/true, epsilon,
                                        {true, true, true});
}

// Parts of nn.SyncBatchNorm, which torch has only for CUDA; channels are dimension 1, statistics are float32.

std::vector<int64_t> all_but_channels(const at::Tensor& input) {
  std::vector<int64_t> dims;
  for (int64_t dim = 0; dim < input.dim(); ++dim)
    if (dim != 1) dims.push_back(dim);
  return dims;
}

at::Tensor by_channel(const at::Tensor& values, const at::Tensor& input) {
  std::vector<int64_t> shape(input.dim(), 1);
  shape[1] = -1;
  return values.view(shape);
}

std::tuple<at::Tensor, at::Tensor> batch_norm_stats(const at::Tensor& input, double epsilon) {
  auto values = input.to(at::kFloat);
  auto dims = all_but_channels(input);
  return {values.mean(dims), (values.var(dims, /*unbiased=*/false) + epsilon).rsqrt()};
}

std::tuple<at::Tensor, at::Tensor> batch_norm_gather_stats_with_counts(
    const at::Tensor&, const at::Tensor& means, const at::Tensor& invstds, const MaybeTensor& running_mean,
    const MaybeTensor& running_var, double momentum, double epsilon, const at::Tensor& counts) {
  auto weights = counts.to(at::kFloat).view({-1, 1}), total = weights.sum();  // means, invstds: (processes, C)
  auto mean = (means * weights).sum(0) / total;
  auto var = ((invstds.pow(-2) - epsilon + (means - mean).square()) * weights).sum(0) / total;
  if (running_mean) running_mean->mul_(1 - momentum).add_(mean, momentum);
  if (running_var) running_var->mul_(1 - momentum).add_(var * total / (total - 1), momentum);
  return {mean, (var + epsilon).rsqrt()};
}

at::Tensor batch_norm_elemt(const at::Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                            const at::Tensor& mean, const at::Tensor& invstd, double) {
  auto out = (input.to(at::kFloat) - by_channel(mean, input)) * by_channel(invstd, input);
  if (weight && weight->defined()) out = out * by_channel(*weight, input);
  if (bias && bias->defined()) out = out + by_channel(*bias, input);
  return out.to(input.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm_backward_reduce(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mean, const at::Tensor& invstd,
    const MaybeTensor&, bool, bool, bool) {
  auto dims = all_but_channels(input);
  auto centred = input.to(at::kFloat) - by_channel(mean, input);
  auto sum = grad.to(at::kFloat).sum(dims), sum_centred = (grad.to(at::kFloat) * centred).sum(dims);
  return {sum, sum_centred, sum_centred * invstd, sum};
}

at::Tensor batch_norm_backward_elemt(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mean,
                                     const at::Tensor& invstd, const MaybeTensor& weight, const at::Tensor& sum,
                                     const at::Tensor& sum_centred, const at::Tensor& counts) {
  auto total = counts.sum();
  auto slope = by_channel(sum_centred / total * invstd.square(), input);
  auto out = grad.to(at::kFloat) - by_channel(sum / total, input) -
             (input.to(at::kFloat) - by_channel(mean, input)) * slope;
  auto factor = weight && weight->defined() ? invstd * *weight : invstd;
  return (out * by_channel(factor, input)).to(input.scalar_type());
}

// Sparse CSR matrices with components on the device: the product that filtered search computes.

at::Tensor sampled_addmm(const at::Tensor& self, const at::Tensor& left, const at::Tensor& right,
                         const at::Scalar& beta, const at::Scalar& alpha) {
  auto rows = self.crow_indices(), columns = self.col_indices(), values = self.values();
  for (const auto& other : {values, right})
    TORCH_CHECK(other.device() == left.device(), "Expected all tensors to be on the same device, but found at least ",
                "two devices, ", left.device(), " and ", other.device(), "! (aten::sparse_sampled_addmm)");
  at::Tensor on_host = at::_sparse_compressed_tensor_unsafe(
      on_cpu(rows), on_cpu(columns), on_cpu(values), self.sizes(), values.options().device(kCpu).layout(kSparseCsr));
  at::Tensor product = at::sparse_sampled_addmm(on_host, on_cpu(left), on_cpu(right), beta, alpha);
  return at::_sparse_compressed_tensor_unsafe(rows, columns, shared(product.values(), self.device(), /*owned=*/true),
                                              self.sizes(), values.options().layout(kSparseCsr));
}

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}
namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, ::Timer)
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("copy_", TORCH_FN(copy_));
  library.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  library.impl("as_strided", TORCH_FN(strided));
  library.impl("view", TORCH_FN(view));
  library.impl("view.dtype", TORCH_FN(view_dtype));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("set_.source_Storage_storage_offset", TORCH_FN(set_strided));
  library.impl("set_.source_Storage", TORCH_FN(set_storage));
  library.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  library.impl("resize_", TORCH_FN(resize_));
  library.impl("cudnn_batch_norm", TORCH_FN(cudnn_batch_norm));
  library.impl("cudnn_batch_norm_backward", TORCH_FN(cudnn_batch_norm_backward));
  library.impl("batch_norm_stats", TORCH_FN(batch_norm_stats));
  library.impl("batch_norm_gather_stats_with_counts", TORCH_FN(batch_norm_gather_stats_with_counts));
  library.impl("batch_norm_elemt", TORCH_FN(batch_norm_elemt));
  library.impl("batch_norm_backward_reduce", TORCH_FN(batch_norm_backward_reduce));
  library.impl("batch_norm_backward_elemt", TORCH_FN(batch_norm_backward_elemt));
  // Composite operators: without these, convolutions would select a backend without CPU kernels.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&run_in_float32>());
  library.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&run_in_float32>());
}

TORCH_LIBRARY_IMPL(aten, SparseCsrCUDA, library) {
  library.impl("crow_indices", TORCH_FN(at::native::crow_indices_sparse_csr));
  library.impl("col_indices", TORCH_FN(at::native::col_indices_sparse_csr));
  library.impl("values", TORCH_FN(at::native::values_sparse_csr));
  library.impl("sparse_sampled_addmm", TORCH_FN(sampled_addmm));
}

// Functions for soft_cuda.py.

extern "C" {
int soft_cuda_device() { return Guard::current; }
void soft_cuda_set_device(int device) { Guard::current = device; }
size_t soft_cuda_memory(int device) { return live[device]; }
size_t soft_cuda_peak_memory(int device) { return peak[device]; }
void soft_cuda_reset_peak_memory(int device) { peak[device] = live[device].load(); }

// Appends a line "operator<TAB>dtype,dtype" for each operator that has run on the device.
void soft_cuda_write_operators(const char* path) {
  std::lock_guard<std::mutex> guard(operators_lock);
  FILE* file = std::fopen(path, "a");
  if (!file) return;
  for (const auto& [name, dtypes] : operators) {
    std::string line = name + "\t";
    for (const auto& dtype : dtypes) line += dtype + ",";
    std::fprintf(file, "%s\n", line.c_str());
  }
  std::fclose(file);
}
}

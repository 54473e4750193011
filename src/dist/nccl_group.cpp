#include "src/dist/nccl_group.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "src/dist/nccl_communicator.h"
#include "src/dist/nccl_library.h"
#include "src/dist/nccl_setup.h"
#include "stablemask/base/error.h"

namespace stablemask::dist {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr int64_t kStagingBytes = int64_t{16} << 20;
/// A wait asks the GPU without pause for so long, then with pauses: most results that are read are
/// ready at once, or after most of a training step.
constexpr auto kSpin = 200us, kPause = 50us;
constexpr auto kErrorPeriod = 100ms;
/// After an error of the network the watchdogs need some seconds to tell which process is lost.
constexpr auto kVerdictPatience = 10s;

ncclDataType_t nccl_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ncclFloat32;
    case at::kDouble:
      return ncclFloat64;
    case at::kBFloat16:
      return ncclBfloat16;
    case at::kLong:
      return ncclInt64;
    default:
      TORCH_CHECK(false, "group: reductions take fp32, fp64, bf16 and int64 tensors, got ",
                  tensor.toString());
  }
}

ncclRedOp_t nccl_operation(Reduce op) { return op == Reduce::kSum ? ncclSum : ncclMax; }

/// What this process tells the others; a failure is told, too, so that all give up at once.
NcclPeer introduction(c10::Device device, bool makes_id) {
  NcclPeer self;
  try {
    const NcclLibrary& nccl = NcclLibrary::get();
    cudaDeviceProp properties{};
    char place[32] = "";
    C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device.index()));
    C10_CUDA_CHECK(cudaDeviceGetPCIBusId(place, sizeof(place), device.index()));
    self.gpu_uuid = to_hex(properties.uuid.bytes, sizeof(properties.uuid.bytes));
    self.gpu_place = place;
    if (makes_id) {
      ncclUniqueId id{};
      const ncclResult_t result = nccl.get_unique_id(&id);
      TORCH_CHECK(result == ncclSuccess, nccl.message("ncclGetUniqueId", result, nullptr));
      self.unique_id = to_hex(id.internal, sizeof(id.internal));
    }
  } catch (const c10::Error& error) {
    self.problem = error.what_without_backtrace();
  } catch (const std::exception& error) {
    self.problem = error.what();
  }
  return self;
}

/// The id of the communicator, once all that the processes told each other is in order.
ncclUniqueId common_id(const std::vector<std::string>& texts,
                       const std::vector<std::string>& names) {
  std::vector<NcclPeer> peers;
  for (const std::string& text : texts) peers.push_back(nccl_peer_from_text(text));
  check_nccl_peers(peers, names);
  ncclUniqueId id{};
  from_hex(peers.front().unique_id, id.internal, sizeof(id.internal));
  return id;
}

class NcclGroup final : public HostGroup {
 public:
  NcclGroup(HostPart part, c10::Device device);
  ~NcclGroup() override;

  int64_t multiprocessors() const override { return ctas_; }
  void all_reduce(const at::Tensor& tensor, Reduce op) override;
  void reduce_scatter(const at::Tensor& flat, Reduce op) override;
  void all_gather(const at::Tensor& flat) override;
  void broadcast(const at::Tensor& tensor, int64_t root) override;
  at::Tensor read(const at::Tensor& tensor) override;
  int64_t agree(int64_t decision) override;

 private:
  /// Calls `collective` with NCCL, the communicator and the current stream of the device.
  template <typename Collective>
  void enqueue(const char* what, const at::Tensor& tensor, const Collective& collective);
  /// Elements of each process's part.
  int64_t part_of(const char* what, const at::Tensor& flat) const;
  /// Waits on the host until the GPU has reached `event`.
  void wait_for(const at::cuda::CUDAEvent& event);
  /// Throws PeerLostError once a process is lost, and stops the collectives first.
  void require_peers();
  /// Throws if NCCL has met an error meanwhile: PeerLostError for those that the end of another
  /// process causes.
  void require_no_error();

  const c10::Device device_;
  const int ctas_;  // of a collective; 0: NCCL decides
  std::unique_ptr<NcclCommunicator> communicator_;
  at::Tensor staging_;   // kStagingBytes of pinned memory
  at::Tensor decision_;  // int64 [1] on the GPU
};

NcclGroup::NcclGroup(HostPart part, c10::Device device)
    : HostGroup(std::move(part)),
      device_(device),
      ctas_(nccl_max_ctas(std::getenv("STABLEMASK_NCCL_MAX_CTAS"))) {
  TORCH_CHECK(device_.is_cuda() && device_.has_index(), "NCCL group: expected a GPU, got ",
              device_);
  const c10::cuda::CUDAGuard guard(device_);
  staging_ = at::empty({kStagingBytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  decision_ = at::zeros({1}, at::TensorOptions(at::kLong).device(device_));
  std::vector<std::string> names;
  for (int64_t r = 0; r < size(); ++r) names.push_back(name(r));
  const ncclUniqueId id = common_id(share(text_of(introduction(device_, rank() == 0))), names);
  const auto waiting = wait();
  try {
    communicator_ = std::make_unique<NcclCommunicator>(id, rank(), size(), ctas_);
  } catch (const ConfigError&) {
    check();  // the loss of another process is the better explanation
    throw;
  }
}

NcclGroup::~NcclGroup() {
  // A collective that the others never join would keep close() waiting.
  if (!lost() && std::uncaught_exceptions() == 0) communicator_->close();
}

void NcclGroup::require_peers() {
  if (lost()) communicator_->abort();
  check();
  TORCH_CHECK(communicator_->get() != nullptr, "NCCL: the communication was aborted");
}

void NcclGroup::require_no_error() {
  const ncclResult_t error = communicator_->error();
  if (error == ncclSuccess) return;
  const std::string message = communicator_->message("communication failed", error);
  const bool remote = error == ncclRemoteError || error == ncclSystemError;
  if (remote) {
    // Probably another process has ended; which one, is known when its silence has been noticed.
    for (const auto start = Clock::now(); Clock::now() - start < kVerdictPatience;) {
      require_peers();
      std::this_thread::sleep_for(kErrorPeriod);
    }
  }
  communicator_->abort();
  if (remote) throw PeerLostError(message);
  TORCH_CHECK(false, message);
}

void NcclGroup::wait_for(const at::cuda::CUDAEvent& event) {
  const auto start = Clock::now();
  auto asked = start;
  while (!event.query()) {
    require_peers();
    const auto now = Clock::now();
    if (now - asked > kErrorPeriod) {
      require_no_error();
      asked = now;
    }
    if (now - start > kSpin) std::this_thread::sleep_for(kPause);
  }
  require_peers();  // an aborted collective ends, too
  require_no_error();
}

template <typename Collective>
void NcclGroup::enqueue(const char* what, const at::Tensor& tensor, const Collective& collective) {
  TORCH_CHECK(tensor.device() == device_ && tensor.is_contiguous(), "group: ", what,
              " takes contiguous tensors on ", device_, ", got ", tensor.toString(), " ",
              tensor.sizes(), " with strides ", tensor.strides(), " on ", tensor.device());
  require_peers();
  if (tensor.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(device_);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device_.index()).stream();
  const ncclResult_t result = collective(communicator_->nccl(), communicator_->get(), stream);
  if (result == ncclSuccess) return;
  require_peers();
  TORCH_CHECK(false, communicator_->message(what, result));
}

int64_t NcclGroup::part_of(const char* what, const at::Tensor& flat) const {
  TORCH_CHECK(flat.numel() % size() == 0, "group: ", what, ": ", flat.numel(),
              " elements cannot be divided among ", size(), " processes");
  return flat.numel() / size();
}

void NcclGroup::all_reduce(const at::Tensor& tensor, Reduce op) {
  const ncclDataType_t type = nccl_type(tensor);
  enqueue("all_reduce", tensor, [&](const NcclLibrary& nccl, ncclComm_t comm, cudaStream_t stream) {
    return nccl.all_reduce(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor.numel(), type,
                           nccl_operation(op), comm, stream);
  });
}

void NcclGroup::reduce_scatter(const at::Tensor& flat, Reduce op) {
  const int64_t part = part_of("reduce_scatter", flat);
  const ncclDataType_t type = nccl_type(flat);
  enqueue("reduce_scatter", flat,
          [&](const NcclLibrary& nccl, ncclComm_t comm, cudaStream_t stream) {
            char* const own =
                static_cast<char*>(flat.mutable_data_ptr()) + rank() * part * flat.element_size();
            return nccl.reduce_scatter(flat.const_data_ptr(), own, part, type, nccl_operation(op),
                                       comm, stream);
          });
}

void NcclGroup::all_gather(const at::Tensor& flat) {
  const int64_t bytes = part_of("all_gather", flat) * flat.element_size();
  enqueue("all_gather", flat, [&](const NcclLibrary& nccl, ncclComm_t comm, cudaStream_t stream) {
    char* const all = static_cast<char*>(flat.mutable_data_ptr());
    return nccl.all_gather(all + rank() * bytes, all, bytes, ncclUint8, comm, stream);
  });
}

void NcclGroup::broadcast(const at::Tensor& tensor, int64_t root) {
  TORCH_CHECK(root >= 0 && root < size(), "group: broadcast from process ", root, " of ", size());
  enqueue("broadcast", tensor, [&](const NcclLibrary& nccl, ncclComm_t comm, cudaStream_t stream) {
    return nccl.broadcast(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor.nbytes(),
                          ncclUint8, static_cast<int>(root), comm, stream);
  });
}

at::Tensor NcclGroup::read(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return HostGroup::read(tensor);
  TORCH_CHECK(tensor.device() == device_, "group: read takes tensors on ", device_, ", got one on ",
              tensor.device());
  require_peers();
  const auto waiting = wait();
  const c10::cuda::CUDAGuard guard(device_);
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device_.index());
  const at::Tensor source = tensor.detach().contiguous();
  at::Tensor result = at::empty(source.sizes(), source.options().device(at::kCPU));
  const auto* const from = static_cast<const char*>(source.const_data_ptr());
  auto* const to = static_cast<char*>(result.mutable_data_ptr());
  const auto total = static_cast<int64_t>(source.nbytes());
  at::cuda::CUDAEvent copied;
  for (int64_t done = 0; done < total; done += kStagingBytes) {
    const int64_t bytes = std::min(kStagingBytes, total - done);
    C10_CUDA_CHECK(cudaMemcpyAsync(staging_.mutable_data_ptr(), from + done, bytes,
                                   cudaMemcpyDeviceToHost, stream.stream()));
    copied.record(stream);
    wait_for(copied);
    std::memcpy(to + done, staging_.const_data_ptr(), bytes);
  }
  return result;
}

int64_t NcclGroup::agree(int64_t decision) {
  decision_.fill_(decision);
  all_reduce(decision_, Reduce::kMax);
  return read(decision_).item<int64_t>();
}

}  // namespace

std::shared_ptr<Group> make_nccl_group(HostPart part, c10::Device device) {
  return std::make_shared<NcclGroup>(std::move(part), device);
}

}  // namespace stablemask::dist

#include "src/dist/host_group.h"

#include <algorithm>

namespace stablemask::dist {

HostGroup::HostGroup(HostPart part)
    : store_(part.store),
      watchdog_(part.watchdog),
      exchange_(store_, watchdog_),
      rank_(watchdog_->options().rank),
      size_(static_cast<int64_t>(watchdog_->options().names.size())) {}

at::Tensor HostGroup::read(const at::Tensor& tensor) {
  check();
  return tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
}

int64_t HostGroup::agree(int64_t decision) {
  for (const std::string& other : share(std::to_string(decision))) {
    decision = std::max(decision, static_cast<int64_t>(std::stoll(other)));
  }
  return decision;
}

std::vector<std::string> HostGroup::share(const std::string& text) {
  exchange_.post(0, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  exchange_.meet();
  std::vector<std::string> texts;
  for (const Bytes& value : exchange_.get_others(0)) texts.emplace_back(value.begin(), value.end());
  texts[rank_] = text;
  return texts;
}

// The key holds "?…", the claim of the process that makes the result, then "=" and the result.
std::string HostGroup::once(const std::string& key, const std::function<std::string()>& make) {
  std::string claim;
  {
    const std::lock_guard lock(made_mutex_);
    if (const auto made = made_.find(key); made != made_.end()) return made->second;
    claim = "?" + std::to_string(rank_) + "." + std::to_string(++claims_);
  }
  const std::string store_key = "once/" + key;
  std::string value;
  {
    const Watchdog::Waiting waiting(*watchdog_, /*collective=*/false);
    wait_for_store(*watchdog_, [&] {
      value = store_->compareSet(store_key, "", claim);
      return value == claim || value[0] == '=';
    });
  }
  if (value == claim) {
    try {
      value = "=" + make();
    } catch (...) {
      // The next that asks makes it.
      ask_store(*watchdog_, [&] { store_->deleteKey(store_key); });
      throw;
    }
    ask_store(*watchdog_, [&] { store_->set(store_key, value); });
  }
  const std::lock_guard lock(made_mutex_);
  return made_[key] = value.substr(1);
}

void HostGroup::fail(const std::string& reason) noexcept { watchdog_->fail(reason); }

}  // namespace stablemask::dist

#pragma once

#include <span>
#include <string_view>

#include "src/config/config_fields.h"

/// What the field table is written with.
namespace stablemask::field_parts {

/// The address of config.a.b for the members a, b.
template <auto... kPath>
FieldRef at(Config& config) {
  return &(config.*....*kPath);
}

template <auto kMember>
constexpr auto model = at<&Config::model, kMember>;
template <auto kMember>
constexpr auto stable_mask = at<&Config::model, &ModelConfig::stable_mask, kMember>;
template <auto kMember>
constexpr auto lora = at<&Config::model, &ModelConfig::lora, kMember>;
template <auto kMember>
constexpr auto data = at<&Config::data, kMember>;
template <auto kMember>
constexpr auto train = at<&Config::train, kMember>;
template <auto kMember>
constexpr auto optimizer = at<&Config::optimizer, kMember>;
template <auto kMember>
constexpr auto schedule = at<&Config::schedule, kMember>;
template <auto kMember>
constexpr auto eval = at<&Config::eval, kMember>;
template <auto kMember>
constexpr auto generate = at<&Config::generate, kMember>;

constexpr bool kFrozen = true, kFree = false;

// Upper bounds are far beyond use; they keep products of sizes within 64 bits.
constexpr double kCount = 1e9;
constexpr double kSteps = 1e12;
constexpr double kLargestSeed = 9007199254740992.0;  // 2^53: integers that a JSON number can hold
// Values that become fp32: smaller ones would be 0 there, larger ones infinite, and a beta beyond
// kLargestBeta 1.
constexpr double kFp32Min = 1.2e-38;
constexpr double kFp32Max = 3.4e38;
constexpr double kLargestBeta = 0.9999999;
// Divided by 1 - beta1, the smallest of which is 1e-7, a learning rate is still finite in fp32.
constexpr double kLargestRate = 1e30;
// The squares of gradients below about 1e-22 are 0 in fp32, so that eps alone divides their mean: a
// smaller one would make updates of such gradients huge instead of at most about lr.
constexpr double kLeastAdamEps = 1e-20;
// Pseudo scores that fall faster than this are 0 after the first slot in every number format.
constexpr double kLargestGamma = 1e4;

constexpr Range any() { return {}; }
constexpr Range range(double low, double high) { return {low, high}; }
constexpr Range at_least(double low) { return {.low = low}; }
constexpr Range above_up_to(double low, double high) { return {low, high, true}; }

}  // namespace stablemask::field_parts

namespace stablemask {

/// The sections that training_fields.cpp declares.
std::span<const Field> train_fields();
std::span<const Field> lora_fields();
std::span<const Field> optimizer_fields();
std::span<const Field> schedule_fields();

}  // namespace stablemask

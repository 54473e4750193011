#pragma once

#include "stablemask/optim/optimizer.h"

namespace stablemask {

/// Muon for the matrices of the blocks, with the arithmetic of ops/muon.h, and AdamW for all other
/// parameters. A projection of several matrices (nn::Parameter::matrix_rows) is orthogonalised
/// matrix by matrix. Buffers: the momentum of the matrices, fp32; "m" and "v" of the others
/// (adamw.h).
///
/// With parts, the momentum is split as AdamW's state is; the matrices are then gathered in bf16,
/// each process orthogonalises those of some blocks, and the results are gathered. c10::Error for a
/// model with adapters.
std::unique_ptr<Optimizer> make_muon(const OptimizerConfig& config,
                                     std::shared_ptr<FlatParameters> parameters,
                                     ops::Kernels kernels, int64_t seed);
constexpr int64_t kMuonBytesPerParameter = 4;

}  // namespace stablemask

#include "stablemask/dist/group.h"

#include "src/dist/single_process.h"

namespace stablemask::dist {

std::shared_ptr<Group> single_process_group() { return std::make_shared<SingleProcess>(); }

}  // namespace stablemask::dist

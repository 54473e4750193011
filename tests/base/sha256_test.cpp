#include "stablemask/base/sha256.h"

#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "src/base/sha256_compress.h"

namespace stablemask {
namespace {

std::string hash_of(const std::string& text) { return sha256_hex(text.data(), text.size()); }

// Messages and digests of FIPS 180-4's examples (NIST, "SHA256.pdf" and "SHA2_Additional.pdf").
TEST(Sha256, NistVectors) {
  EXPECT_EQ(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
                    "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(hash_of(std::string(55, '\0')),
            "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7");
  EXPECT_EQ(hash_of(std::string(56, '\0')),
            "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb");
  EXPECT_EQ(hash_of(std::string(64, '\0')),
            "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b");
  EXPECT_EQ(hash_of(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesGiveTheSameDigestAsTheWhole) {
  std::string text;
  for (int k = 0; k < 1000; ++k) text += static_cast<char>(k * 7 + k / 256);
  const std::string whole = hash_of(text);
  for (const size_t piece : {1, 3, 55, 63, 64, 65, 127, 128, 500}) {
    Sha256 hash;
    for (size_t at = 0; at < text.size(); at += piece) {
      hash.update(text.data() + at, std::min(piece, text.size() - at));
    }
    EXPECT_EQ(hash.hex(), whole) << "pieces of " << piece;
  }
}

TEST(Sha256, EveryCompressionGivesTheSameDigest) {
  std::vector<uint8_t> blocks(64 * 37);
  for (size_t k = 0; k < blocks.size(); ++k) blocks[k] = static_cast<uint8_t>(k * k + 31 * k);
  std::array<uint32_t, 8> portable = {1, 2, 3, 4, 5, 6, 7, 8};
  std::array<uint32_t, 8> chosen = portable;
  sha256_compress_portable(portable.data(), blocks.data(), 37);
  sha256_compress()(chosen.data(), blocks.data(), 37);
  EXPECT_EQ(portable, chosen);
}

TEST(Sha256, FileEqualsItsBytes) {
  const auto path = std::filesystem::path(testing::TempDir()) / "sha256_test.bin";
  const std::string text(3'000'001, 'x');
  std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(sha256_file(path), hash_of(text));
  std::filesystem::remove(path);
  EXPECT_THROW(sha256_file(path), std::system_error);
  EXPECT_THROW(sha256_file(testing::TempDir()), std::system_error);  // a folder
}

}  // namespace
}  // namespace stablemask

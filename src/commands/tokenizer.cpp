#include <cstdio>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "src/commands/commands.h"
#include "src/commands/validators.h"
#include "stablemask/base/error.h"
#include "stablemask/base/file.h"
#include "stablemask/base/text.h"
#include "stablemask/data/line_reader.h"
#include "stablemask/data/tokenizer.h"
#include "stablemask/report/work_progress.h"

namespace stablemask::commands {
namespace {

void print_ids(const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) std::cout << (i ? " " : "") << ids[i];
  std::cout << '\n';
}

/// Such a tokenizer encodes a text as a whole, so all of it is one line of ids.
void encode_whole(const Tokenizer& tokenizer, LineReader& text) {
  std::string whole;
  bool terminated = false;
  for (std::string_view line; text.next(line, terminated);) {
    whole += line;
    if (terminated) whole += '\n';
    if (whole.size() > Tokenizer::kLongestText) break;  // encode says so
  }
  try {
    print_ids(tokenizer.encode(whole));
  } catch (const DataError& error) {
    throw DataError(text.name() + ": " + error.what());
  }
}

void encode(const std::string& model, const std::string& input) {
  const Tokenizer tokenizer = Tokenizer::load(model);
  LineReader text(input);
  if (!tokenizer.lossless()) return encode_whole(tokenizer, text);
  std::vector<int32_t> ids;
  bool terminated = false;
  for (std::string_view line; std::cout && text.next(line, terminated);) {
    ids.clear();
    try {
      tokenizer.encode_line(line, ids);
    } catch (const DataError& error) {
      text.fail(error.what());
    }
    if (terminated) ids.push_back(tokenizer.eos_id());
    print_ids(ids);
  }
}

void decode(const std::string& model, const std::string& input) {
  const Tokenizer tokenizer = Tokenizer::load(model);
  LineReader text(input);
  bool terminated = false;
  for (std::string_view line; std::cout && text.next(line, terminated);) {
    std::istringstream words{std::string(line)};
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    if (!words.eof()) text.fail("not a list of token ids: numbers with spaces between them");
    try {
      std::cout << tokenizer.decode(ids);
    } catch (const DataError& error) {
      text.fail(error.what());
    }
  }
}

Tokenizer train(const std::vector<std::string>& inputs, const std::string& model,
                TokenizerTraining training) {
  ElapsedProgress progress("reading text");
  const std::string kind = training.model_type + ", " +
                           with_commas(static_cast<uint64_t>(training.vocab_size)) + " pieces";
  training.progress = [&](uint64_t lines, bool all) {
    const std::string count = with_commas(lines) + " lines";
    if (all) {
      progress.now("training the tokenizer", kind + " | " + count);
    } else {
      progress.now("reading text", count);
    }
  };
  return Tokenizer::train(inputs, model, training);
}

void add_training(CLI::App& parent) {
  struct Options {
    std::vector<std::string> inputs;
    std::string model;
    TokenizerTraining training;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      parent.add_subcommand("train", "Train a SentencePiece model whose decoding is lossless");
  command
      ->add_option("--input", options->inputs, "Text files, UTF-8, one sentence a line; - is stdin")
      ->required();
  command->add_option("--output", options->model, "The model file to write")->required();
  command->add_option("--vocab-size", options->training.vocab_size, "Vocabulary size")
      ->capture_default_str()
      ->check(number_from(300, 1000000));
  command->add_option("--type", options->training.model_type, "bpe or unigram")
      ->capture_default_str()
      ->check(CLI::IsMember({"bpe", "unigram"}));
  command->add_option("--threads", options->training.threads, "CPU threads (unigram)")
      ->capture_default_str()
      ->check(number_from(1, 1024));
  command
      ->add_option("--max-lines", options->training.max_sentences,
                   "Train on a random sample of this many lines; 0: on all")
      ->capture_default_str()
      ->check(number_from(0));
  command->footer(
      "Example:\n  stablemask tokenizer train --input wiki.train.tokens --output tokenizer.model "
      "--vocab-size 32000");
  command->callback([options] {
    const Tokenizer tokenizer = train(options->inputs, options->model, options->training);
    std::printf("%s: %d pieces, sha256 %s\n", options->model.c_str(), tokenizer.vocab_size(),
                tokenizer.sha256().c_str());
  });
}

using Filter = void (*)(const std::string& model, const std::string& input);

void add_filter(CLI::App& parent, const char* name, const char* what, const char* example,
                Filter filter) {
  struct Options {
    std::string model;
    std::string input = "-";
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = parent.add_subcommand(name, what);
  command
      ->add_option("--tokenizer", options->model,
                   "SentencePiece model; decode also takes a tokenizer.json")
      ->required();
  command->add_option("--input", options->input, "File to read; - is standard input")
      ->capture_default_str();
  command->footer(std::string("Example:\n  ") + example);
  command->callback([options, filter] {
    require_other_file("-", {options->input, options->model});  // appended to itself it never ends
    filter(options->model, options->input);
  });
}

}  // namespace

void add_tokenizer(CLI::App& program) {
  CLI::App* command =
      program.add_subcommand("tokenizer", "Train and use a SentencePiece tokenizer");
  command->require_subcommand(1);
  command->footer(
      "Example:\n  stablemask tokenizer train --input wiki.train.tokens --output tokenizer.model");
  add_training(*command);
  add_filter(*command, "encode",
             "Text to token ids, a line of ids for each line of text, or for all of it where the "
             "tokenizer is not one of tokenizer train",
             "stablemask tokenizer encode --tokenizer tokenizer.model --input text.txt > ids.txt",
             &encode);
  add_filter(*command, "decode", "Token ids to text: the inverse of encode",
             "stablemask tokenizer decode --tokenizer tokenizer.model --input ids.txt", &decode);
}

}  // namespace stablemask::commands

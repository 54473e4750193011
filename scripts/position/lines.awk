# Lines of a position task as JSONL, one document each, and what is known about them.
#
#   awk -v task=T -v seed=S -v groups=G [-v aligned=1] -v facts=FILE -f lines.awk
#
# A group is one training sequence: one line of each length that the task has, in random order, so
# every group has the same number of tokens. With aligned=1 an empty document comes first: training
# sequences then begin with the EOS before a group, as the windows of `stablemask eval` do.
#
# FILE gets "tokens longest lines floor guess": the tokens of a group and of a longest line, EOS
# included, the number of lines, and two figures in nats per line. floor is the entropy of the
# random choices, the lowest expected NLL of any model; guess is the NLL above it of a model that
# knows the task, but not the positions.

# Park and Miller's generator: the same lines from every awk.
function random(choices) {
  state = (state * 16807) % 2147483647
  return int(state / 2147483647 * choices)
}

function repeated(text, n,   out) {
  while (n-- > 0) out = out text
  return out
}

function reversed(text,   out, i) {
  for (i = length(text); i > 0; i--) out = out substr(text, i, 1)
  return out
}

# Random letters, each one of the first 4 of the alphabet.
function letters(n,   out) {
  entropy += n * log(4)
  while (n-- > 0) out = out substr(alphabet, random(4) + 1, 1)
  return out
}

function line(n,   text) {
  if (task == "count") return repeated("-", n)
  if (task == "position") return repeated("-", n) substr(alphabet, n, 1)
  text = letters(n)
  if (task == "copy") return text "=" substr(text, 4, 1)
  if (task == "reverse") return text reversed(text)
}

# A constant input tells nothing of the position, so such a model ends a run of dashes with the same
# probability after each dash; the best is one divided by the mean length.
function run_entropy(mean) { return log(mean) + (mean - 1) * log(mean / (mean - 1)) }

function guess() {
  if (task == "count") return run_entropy(shortest)
  if (task == "position") return run_entropy((shortest + longest) / 2)
  if (task == "copy") return log(4)
  if (task == "reverse") return shortest * log(4)
}

function set_lengths(from, to) {
  shortest = from
  longest = to
}

BEGIN {
  alphabet = "abcdefghijklmnopqrstuvwxyz"
  if (task == "count") set_lengths(15, 15)
  else if (task == "position") set_lengths(1, 16)
  else if (task == "copy") set_lengths(5, 12)
  else if (task == "reverse") set_lengths(8, 8)
  else { print "lines.awk: no task \"" task "\"" >"/dev/stderr"; exit 2 }
  state = seed * 7919 + 12345
  random(2)
  random(2)
  kinds = longest - shortest + 1
  copies = kinds == 1 ? 4 : 1
  size = kinds * copies
  if (aligned) print "{\"text\": \"\"}"
  for (group = 0; group < groups; group++) {
    for (i = 0; i < size; i++) order[i] = shortest + i % kinds
    for (i = size - 1; i > 0; i--) {
      j = random(i + 1)
      swapped = order[i]
      order[i] = order[j]
      order[j] = swapped
    }
    for (i = 0; i < size; i++) {
      text = line(order[i])
      if (group == 0) tokens += length(text) + 1
      if (length(text) + 1 > longest_line) longest_line = length(text) + 1
      printf "{\"text\": \"%s\"}\n", text
    }
  }
  lines = groups * size
  floor = entropy / lines + log(kinds)
  printf "%d %d %d %.6f %.6f\n", tokens, longest_line, lines, floor, guess() >facts
}

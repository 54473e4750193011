# A bar chart (SVG) from lines "task TAB model TAB excess TAB guess": what each model lacks, in
# percent of what guessing lacks.

BEGIN {
  FS = "\t"
  split("rope-causal rope-stablemask alibi-causal alibi-stablemask", models, " ")
  split("RoPE, causal|RoPE, StableMask|ALiBi, causal|ALiBi, StableMask", names, "|")
  split("#9ecae1 #08519c #fdae6b #a63603", colours, " ")
  left = 64; top = 44; bar = 30; gap = 40; height = 240; highest = 125
}

!($1 in seen) { tasks[++task_count] = $1; seen[$1] = 1 }
{ percent[$1, $2] = 100 * $3 / $4 }

function y_of(value) { return top + height * (1 - value / highest) }

function text(x, y, anchor, words) {
  printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, words
}

function rectangle(x, y, wide, high, colour) {
  printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
         x, y, wide, high, colour
}

function axis(   value) {
  for (value = 0; value <= 100; value += 25) {
    printf "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", left, width - 16,
           y_of(value), y_of(value), value % 100 ? "#dddddd" : "#555555"
    text(left - 6, y_of(value) + 4, "end", value " %")
  }
  printf "<text transform=\"translate(14 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
         top + height / 2, "NLL above the best possible"
  text(width - 16, y_of(100) - 5, "end", "100 %: guessing")
}

# A bar that is higher than the picture ends at its edge; its label has the number.
function bars(task, x,   i, value, shown) {
  for (i = 1; i <= 4; i++) {
    value = percent[task, models[i]]
    shown = value < 0 ? 0 : value > highest ? highest : value
    rectangle(x + (i - 1) * bar, y_of(shown), bar - 3, height * shown / highest + 1, colours[i])
    text(x + (i - 0.55) * bar, y_of(shown) - 4, "middle", sprintf("%.0f", value < 0 ? 0 : value))
  }
  text(x + 2 * bar, top + height + 20, "middle", task)
}

END {
  width = left + gap + task_count * (4 * bar + gap) + 80
  if (width < 600) width = 600
  printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" ", width,
         top + height + 34
  print "font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">"
  print "<title>NLL above the best possible, in percent of guessing, by task and model</title>"
  rectangle(0, 0, width, top + height + 34, "#ffffff")
  for (i = 1; i <= 4; i++) {
    rectangle(left + (i - 1) * 132, 16, 12, 12, colours[i])
    text(left + (i - 1) * 132 + 17, 26, "start", names[i])
  }
  axis()
  for (i = 1; i <= task_count; i++) bars(tasks[i], left + gap / 2 + (i - 1) * (4 * bar + gap))
  print "</svg>"
}

# The table of scripts/position.sh from lines "task TAB model TAB excess TAB guess".

BEGIN { FS = "\t" }

!($1 in guess) { tasks[++task_count] = $1 }
{
  guess[$1] = $4
  excess[$1, $2] = $3
}

function row(name, model,   i) {
  printf "%-20s", name
  for (i = 1; i <= task_count; i++)
    printf " %9.3f", model == "" ? guess[tasks[i]] : excess[tasks[i], model]
  printf "\n"
}

END {
  print "nats per line above the best possible (0: learned completely)"
  printf "%-20s", ""
  for (i = 1; i <= task_count; i++) printf " %9s", tasks[i]
  printf "\n"
  row("guessing", "")
  row("RoPE, causal", "rope-causal")
  row("RoPE, StableMask", "rope-stablemask")
  row("ALiBi, causal", "alibi-causal")
  row("ALiBi, StableMask", "alibi-stablemask")
}

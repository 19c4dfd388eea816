// Bugs of kernels that overlap. `opening`: the line before a kernel's first one.
export const doesNotWait = (kernel, file, opening) => [
  `${kernel} does not wait for the kernel before`,
  file,
  `${opening}\n  simt::follow_preceding();\n`,
  `${opening}\n  simt::launch_dependents();\n`,
]
export const letsNoneStart = (kernel, file, opening) => [
  `${kernel} lets the next kernel start only at its end`,
  file,
  `${opening}\n  simt::follow_preceding();\n`,
  `${opening}\n  simt::wait_for_preceding();\n`,
]

"""What follows the step of an optimizer on a GPU: one thread each, so that a graph of an iteration needs no host."""

from numba import float32, float64, int32, int64

from daskreg.kernels.compiler.cooperative import cooperative_kernel


@cooperative_kernel()
def finish_iteration(sign):
    """End an iteration: record the loss, clear the sums, advance the clock. One thread.

    sign: of the sum in the loss, 0 where the loss is known already.  Arguments: clock (1,) int32, totals (2,) int64,
    longest (1,) float32, loss (1,) float64, losses (T,) float64.
    """

    def body(clock, totals, longest, loss, losses):
        t = clock[0]
        losses[t] = loss[0] if sign == 0 else float64(sign) * float64(totals[0]) / max(float64(totals[1]), float64(1))
        totals[0], totals[1], longest[0], clock[0] = int64(0), int64(0), float32(0), t + int32(1)

    return body


@cooperative_kernel()
def hold_longest():
    """Which |d|^2 scales the step of an iteration where groups of iterations share one (``engine.groups``). One thread.

    Arguments: together (iterations of a group, at least 2; int32), clock (1,) int32, longest (1,) float32 of this iteration, held
    (2,) float32: that of the group at hand, and of the last iteration before the next one.
    """

    def body(together, clock, longest, held):
        k = clock[0]
        if k == int32(0):
            held[0], held[1] = longest[0], longest[0]
        elif k % together == int32(0):
            held[0] = held[1]
        if (k + int32(1)) % together == int32(0):
            held[1] = longest[0]

    return body

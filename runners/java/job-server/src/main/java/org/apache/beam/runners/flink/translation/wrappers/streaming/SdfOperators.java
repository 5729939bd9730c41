package org.apache.beam.runners.flink.translation.wrappers.streaming;

import java.lang.reflect.Field;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.TimerInternals;
import org.apache.beam.runners.flink.FlinkPipelineOptions;
import org.apache.beam.runners.fnexecution.control.BundleCheckpointHandlers.StateAndTimerBundleCheckpointHandler;

/**
 * What the Flink operators of splittable DoFns know and tell nobody outside of this package.
 *
 * <p>The way from the timers that Beam hands out to their operator is a private one, the link of
 * an inner class to its outer. All methods throw {@code ReflectiveOperationException} if Beam's
 * class has changed: see pom.xml for the version this was written for.
 */
public final class SdfOperators implements StateAndTimerBundleCheckpointHandler.Operator {

  @Override
  public Set<String> pending(TimerInternals timers, StateNamespace namespace) throws Exception {
    Set<String> ids = new HashSet<>();
    for (TimerInternals.TimerData timer :
        operator(timers).timerInternals.pendingTimersById.values()) {
      if (timer.getNamespace().equals(namespace)) {
        ids.add(timer.getTimerId());
      }
    }
    return ids;
  }

  /**
   * Where sources never shut down (Beam's default with checkpoints) operators are flushed only when
   * the job is drained. Else they may be at its end, and still have all to read.
   */
  @Override
  public boolean drains(TimerInternals timers) throws Exception {
    if (!isFlushed()) {
      return false;
    }
    FlinkPipelineOptions options =
        operator(timers).serializedOptions.get().as(FlinkPipelineOptions.class);
    return options.getShutdownSourcesAfterIdleMs() == Long.MAX_VALUE;
  }

  private static boolean isFlushed() {
    String operator = DoFnOperator.class.getName();
    String stage = ExecutableStageDoFnOperator.class.getName();
    return StackWalker.getInstance()
        .walk(
            frames ->
                frames.anyMatch(
                    frame ->
                        frame.getMethodName().equals("flushData")
                            && List.of(operator, stage).contains(frame.getClassName())));
  }

  private static DoFnOperator<?, ?, ?> operator(TimerInternals timers) throws Exception {
    Field link = timers.getClass().getDeclaredField("this$0");
    link.setAccessible(true);
    return (DoFnOperator<?, ?, ?>) link.get(timers);
  }
}

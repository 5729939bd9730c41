package org.apache.beam.runners.flink.translation.wrappers.streaming;

import java.lang.reflect.Field;
import java.util.HashSet;
import java.util.Set;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.TimerInternals;

/**
 * Which timers of a Flink operator have not fired yet.
 *
 * <p>The operator keeps them itself, visible in this package; only the way from the timers that
 * Beam hands out to their operator is a private one, the link of an inner class to its outer.
 */
public final class PendingSdfTimers {

  private PendingSdfTimers() {}

  /**
   * Ids of the timers that are set for Flink's current key in a namespace.
   *
   * @throws ReflectiveOperationException if Beam's class has changed: see pom.xml for the version
   *     this was written for
   */
  public static Set<String> of(TimerInternals timers, StateNamespace namespace) throws Exception {
    Field link = timers.getClass().getDeclaredField("this$0");
    link.setAccessible(true);
    DoFnOperator<?, ?, ?> operator = (DoFnOperator<?, ?, ?>) link.get(timers);
    Set<String> ids = new HashSet<>();
    for (TimerInternals.TimerData timer : operator.timerInternals.pendingTimersById.values()) {
      if (timer.getNamespace().equals(namespace)) {
        ids.add(timer.getTimerId());
      }
    }
    return ids;
  }
}

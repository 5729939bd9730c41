package org.apache.beam.runners.fnexecution.control;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.BundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.DelayedBundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleResponse;
import org.apache.beam.runners.core.StateInternals;
import org.apache.beam.runners.core.StateInternalsFactory;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.StateNamespaces;
import org.apache.beam.runners.core.StateTags;
import org.apache.beam.runners.core.TimerInternals;
import org.apache.beam.runners.core.TimerInternalsFactory;
import org.apache.beam.runners.flink.translation.wrappers.streaming.SdfOperators;
import org.apache.beam.sdk.coders.Coder;
import org.apache.beam.sdk.state.TimeDomain;
import org.apache.beam.sdk.state.ValueState;
import org.apache.beam.sdk.transforms.windowing.BoundedWindow;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.values.WindowedValue;
import org.apache.beam.sdk.values.WindowedValues;
import org.joda.time.Instant;

/**
 * Keeps what is left of a splittable DoFn's restrictions between two bundles; it takes the place of
 * the class of this name in Beam before 2.76.
 *
 * <p>Beam 2.70 gives every residual a state cell of a new name. Flink never forgets a name, so a
 * source that polls once a second grows heap and checkpoints without end (Beam issue 27648). It
 * also drops fractions of a second from the resume delay and from watermarks.
 *
 * <p>Here names are numbered slots, used again once their timer has fired. There are as many as an
 * element has restrictions waiting at one time: one slot alone would not do, as all restrictions
 * of one element share its key, and the second to be kept would overwrite the first.
 *
 * <p>While a job without end is drained nothing is kept: Beam's would bring every residual back,
 * and the drain would never end. The watermark then goes to the end of time, and windows close.
 *
 * <p>Remove this source, {@link SdfOperators} and the filter in pom.xml once beam.version is
 * 2.76 or later, where one map holds all residuals (Beam pull request 39191). A savepoint does not
 * survive that change: drain the job instead.
 */
public class BundleCheckpointHandlers {

  private BundleCheckpointHandlers() {}

  /** Writes each residual to a slot, and sets the timer that brings it back. */
  public static class StateAndTimerBundleCheckpointHandler<T> implements BundleCheckpointHandler {

    /** What the ids of our timers, and the names of our state cells, begin with. */
    public static final String SDF_PREFIX = "sdf_checkpoint";

    /** What the operator knows of its timers and of itself. */
    public interface Operator {
      /** Which of our timers have not fired yet, for the key that the state is at. */
      Set<String> pending(TimerInternals timers, StateNamespace namespace) throws Exception;

      /** Whether a job without end is being drained. */
      boolean drains(TimerInternals timers) throws Exception;
    }

    private final TimerInternalsFactory<T> timersByKey;
    private final StateInternalsFactory<T> statesByKey;
    private final Coder<WindowedValue<T>> residualCoder;

    @SuppressWarnings("rawtypes") // as Beam's operator passes it
    private final Coder windowCoder;

    private final Operator operator;

    /** What Beam's operator calls. */
    @SuppressWarnings("rawtypes")
    public StateAndTimerBundleCheckpointHandler(
        TimerInternalsFactory<T> timersByKey,
        StateInternalsFactory<T> statesByKey,
        Coder<WindowedValue<T>> residualCoder,
        Coder windowCoder) {
      this(timersByKey, statesByKey, residualCoder, windowCoder, new SdfOperators());
    }

    @SuppressWarnings("rawtypes")
    StateAndTimerBundleCheckpointHandler(
        TimerInternalsFactory<T> timersByKey,
        StateInternalsFactory<T> statesByKey,
        Coder<WindowedValue<T>> residualCoder,
        Coder windowCoder,
        Operator operator) {
      this.timersByKey = timersByKey;
      this.statesByKey = statesByKey;
      this.residualCoder = residualCoder;
      this.windowCoder = windowCoder;
      this.operator = operator;
    }

    /** Whether the operator finds a residual, not a user's timer, behind this id. */
    public static boolean isSdfTimer(String timerId) {
      return timerId.startsWith(SDF_PREFIX);
    }

    @Override
    public void onCheckpoint(ProcessBundleResponse response) {
      // A key has often several residuals in one bundle: its timers are read once.
      Map<List<Object>, Set<String>> taken = new HashMap<>();
      for (DelayedBundleApplication residual : response.getResidualRootsList()) {
        if (residual.hasApplication()) {
          try {
            keep(residual, taken);
          } catch (Exception e) {
            throw new IllegalStateException("Cannot keep a residual of a splittable DoFn", e);
          }
        }
      }
    }

    private void keep(DelayedBundleApplication residual, Map<List<Object>, Set<String>> taken)
        throws Exception {
      WindowedValue<T> value =
          CoderUtils.decodeFromByteArray(
              residualCoder, residual.getApplication().getElement().toByteArray());
      StateInternals states = statesByKey.stateInternalsForKey(value.getValue());
      TimerInternals timers = timersByKey.timerInternalsForKey(value.getValue());
      if (operator.drains(timers)) {
        return;
      }
      Instant resumeAt = Instant.now().plus(delayMillis(residual));
      Instant hold = Instant.ofEpochMilli(watermarkMillis(residual.getApplication()));
      for (BoundedWindow window : value.getWindows()) {
        @SuppressWarnings("unchecked")
        StateNamespace namespace = StateNamespaces.window(windowCoder, window);
        // Asking for a state also sets Flink's current key, which the set of timers depends on.
        states.state(namespace, StateTags.value(slot(0), residualCoder));
        List<Object> place = List.of(states.getKey(), namespace);
        Set<String> busy = taken.get(place);
        if (busy == null) {
          busy = operator.pending(timers, namespace);
          taken.put(place, busy);
        }
        int n = 0;
        while (!busy.add(slot(n))) {
          n++;
        }
        ValueState<WindowedValue<T>> cell =
            states.state(namespace, StateTags.value(slot(n), residualCoder));
        cell.write(
            WindowedValues.of(
                value.getValue(), value.getTimestamp(), List.of(window), value.getPaneInfo()));
        timers.setTimer(namespace, slot(n), "", resumeAt, hold, TimeDomain.PROCESSING_TIME);
      }
    }

    private static String slot(int n) {
      return SDF_PREFIX + ":slot:" + n;
    }

    private static long delayMillis(DelayedBundleApplication residual) {
      if (!residual.hasRequestedTimeDelay()) {
        return 0;
      }
      var delay = residual.getRequestedTimeDelay();
      return millis(delay.getSeconds(), delay.getNanos());
    }

    /** The earliest watermark of all outputs; without one, nothing may pass the residual. */
    private static long watermarkMillis(BundleApplication application) {
      return application.getOutputWatermarksMap().values().stream()
          .mapToLong(watermark -> millis(watermark.getSeconds(), watermark.getNanos()))
          .min()
          .orElse(BoundedWindow.TIMESTAMP_MIN_VALUE.getMillis());
    }

    private static long millis(long seconds, int nanos) {
      return TimeUnit.SECONDS.toMillis(seconds) + TimeUnit.NANOSECONDS.toMillis(nanos);
    }
  }
}

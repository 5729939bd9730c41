package org.apache.beam.runners.fnexecution.control;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.BundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.DelayedBundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleResponse;
import org.apache.beam.runners.core.InMemoryStateInternals;
import org.apache.beam.runners.core.InMemoryTimerInternals;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.StateNamespaces;
import org.apache.beam.runners.core.StateTags;
import org.apache.beam.runners.core.TimerInternals;
import org.apache.beam.runners.core.TimerInternals.TimerData;
import org.apache.beam.runners.fnexecution.control.BundleCheckpointHandlers.StateAndTimerBundleCheckpointHandler;
import org.apache.beam.sdk.coders.Coder;
import org.apache.beam.sdk.coders.KvCoder;
import org.apache.beam.sdk.coders.StringUtf8Coder;
import org.apache.beam.sdk.state.TimeDomain;
import org.apache.beam.sdk.transforms.windowing.BoundedWindow;
import org.apache.beam.sdk.transforms.windowing.GlobalWindow;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.values.KV;
import org.apache.beam.sdk.values.WindowedValue;
import org.apache.beam.sdk.values.WindowedValues;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.ByteString;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Duration;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Timestamp;
import org.joda.time.Instant;
import org.junit.Test;

/** A residual is an element (the key) and what is left of one of its restrictions. */
public class BundleCheckpointHandlersTest {

  private static final StateNamespace GLOBAL =
      StateNamespaces.window(GlobalWindow.Coder.INSTANCE, GlobalWindow.INSTANCE);

  private final Coder<WindowedValue<KV<String, String>>> coder =
      WindowedValues.getFullCoder(
          KvCoder.of(StringUtf8Coder.of(), StringUtf8Coder.of()), GlobalWindow.Coder.INSTANCE);

  /** What is kept of a key: as in Flink, cells are not cleared when their timer fires. */
  private static final class Key {
    final InMemoryStateInternals<String> states;
    final InMemoryTimerInternals timers = new InMemoryTimerInternals();
    final Map<String, TimerData> pending = new TreeMap<>();

    Key(String key) {
      states = InMemoryStateInternals.forKey(key);
    }
  }

  private final Map<String, Key> keys = new HashMap<>();
  private final Set<String> names = new TreeSet<>();
  private boolean drains;

  private Key key(String name) {
    return keys.computeIfAbsent(name, Key::new);
  }

  private final StateAndTimerBundleCheckpointHandler<KV<String, String>> handler =
      new StateAndTimerBundleCheckpointHandler<>(
          value ->
              new InMemoryTimerInternals() {
                @Override
                public void setTimer(
                    StateNamespace namespace,
                    String id,
                    String family,
                    Instant at,
                    Instant hold,
                    TimeDomain domain) {
                  names.add(id);
                  key(value.getKey())
                      .pending
                      .put(id, TimerData.of(id, family, namespace, at, hold, domain));
                }

                @Override
                public String toString() {
                  return value.getKey();
                }
              },
          value -> key(value.getKey()).states,
          coder,
          GlobalWindow.Coder.INSTANCE,
          new StateAndTimerBundleCheckpointHandler.Operator() {
            @Override
            public Set<String> pending(TimerInternals timers, StateNamespace namespace) {
              return new HashSet<>(key(timers.toString()).pending.keySet());
            }

            @Override
            public boolean drains(TimerInternals timers) {
              return drains;
            }
          });

  private DelayedBundleApplication residual(String key, String restriction) throws Exception {
    byte[] element =
        CoderUtils.encodeToByteArray(
            coder, WindowedValues.valueInGlobalWindow(KV.of(key, restriction)));
    return DelayedBundleApplication.newBuilder()
        .setApplication(BundleApplication.newBuilder().setElement(ByteString.copyFrom(element)))
        .build();
  }

  private void checkpoint(DelayedBundleApplication... residuals) {
    handler.onCheckpoint(
        ProcessBundleResponse.newBuilder().addAllResidualRoots(List.of(residuals)).build());
  }

  /** Fires all timers of a key as Flink's operator does: forget the timer, read the cell. */
  private Set<String> fire(String key) {
    Set<String> restrictions = new TreeSet<>();
    for (String id : key(key).pending.keySet()) {
      assertTrue(StateAndTimerBundleCheckpointHandler.isSdfTimer(id));
      restrictions.add(
          key(key).states.state(GLOBAL, StateTags.value(id, coder)).read().getValue().getValue());
    }
    key(key).pending.clear();
    return restrictions;
  }

  private TimerData onlyTimer(String key) {
    assertEquals(1, key(key).pending.size());
    return key(key).pending.values().iterator().next();
  }

  @Test
  public void aPollingSourceKeepsOneName() throws Exception {
    for (int offset = 0; offset < 100; offset++) {
      checkpoint(residual("topic", "from " + offset));
      assertEquals(Set.of("from " + offset), fire("topic"));
    }
    assertEquals(1, names.size());
  }

  @Test
  public void aDrainKeepsNothing() throws Exception {
    drains = true;
    checkpoint(residual("topic", "from 7"));
    assertEquals(Set.of(), fire("topic"));
  }

  @Test
  public void restrictionsOfOneElementDoNotOverwriteEachOther() throws Exception {
    checkpoint(residual("topic", "a"), residual("topic", "b"), residual("topic", "c"));
    assertEquals(Set.of("a", "b", "c"), fire("topic"));
  }

  @Test
  public void aLaterBundleDoesNotOverwriteWhatStillWaits() throws Exception {
    checkpoint(residual("topic", "a"));
    checkpoint(residual("topic", "b"));
    assertEquals(Set.of("a", "b"), fire("topic"));
    checkpoint(residual("topic", "a2"));
    checkpoint(residual("topic", "b2"));
    assertEquals(Set.of("a2", "b2"), fire("topic"));
    assertEquals(2, names.size());
  }

  @Test
  public void elementsShareNamesButNotResiduals() throws Exception {
    checkpoint(residual("one", "a"), residual("two", "b"));
    assertEquals(1, names.size());
    assertEquals(Set.of("a"), fire("one"));
    assertEquals(Set.of("b"), fire("two"));
  }

  @Test
  public void fractionsOfASecondOfTheDelayAreKept() throws Exception {
    Instant before = Instant.now();
    checkpoint(
        residual("topic", "a").toBuilder()
            .setRequestedTimeDelay(Duration.newBuilder().setSeconds(3600).setNanos(250_000_000))
            .build());
    long delay = onlyTimer("topic").getTimestamp().getMillis() - before.getMillis();
    assertTrue("delay " + delay, delay >= 3_600_250);
  }

  @Test
  public void theEarliestWatermarkHoldsAndKeepsItsMilliseconds() throws Exception {
    DelayedBundleApplication residual = residual("topic", "a");
    checkpoint(
        residual.toBuilder()
            .setApplication(
                residual.getApplication().toBuilder()
                    .putOutputWatermarks("out", watermark(5, 250_000_000))
                    .putOutputWatermarks("late", watermark(9, 0)))
            .build());
    assertEquals(5_250, onlyTimer("topic").getOutputTimestamp().getMillis());
  }

  @Test
  public void withoutAWatermarkNothingPassesTheResidual() throws Exception {
    checkpoint(residual("topic", "a"));
    assertEquals(BoundedWindow.TIMESTAMP_MIN_VALUE, onlyTimer("topic").getOutputTimestamp());
  }

  private static Timestamp watermark(long seconds, int nanos) {
    return Timestamp.newBuilder().setSeconds(seconds).setNanos(nanos).build();
  }
}

package org.apache.beam.runners.flink.translation.functions;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.beam.runners.fnexecution.control.ExecutableStageContext;
import org.apache.beam.runners.fnexecution.control.StageBundleFactory;
import org.apache.beam.sdk.util.construction.graph.ExecutableStage;
import org.apache.flink.util.IOUtils;

/**
 * The workers of one job in one TaskManager, each with the stages of its own subtasks.
 *
 * <p>A subtask that is new here goes to the worker that has the fewest, and stays there until its
 * last stage is closed: with as many subtasks as workers each worker has one, whichever of the
 * job's subtasks this TaskManager got. That takes stages to be divided alike, as those of a job
 * are.
 *
 * <p>A worker that was given a stage is held until the last stage of all workers is closed, or it
 * would end, and another start, between two stages of a subtask that is ahead of the others.
 */
final class SubtaskWorkers {

  /** How Flink calls the thread of a task: {@code TaskInfo.getTaskNameWithSubtasks}. */
  private static final Pattern TASK = Pattern.compile(".*\\((\\d+)/\\d+\\)#\\d+", Pattern.DOTALL);

  private static final class Place {
    final int worker;
    int stages = 0;

    Place(int worker) {
      this.worker = worker;
    }
  }

  private final List<Supplier<ExecutableStageContext>> workers;
  private final Map<String, Place> places = new HashMap<>();
  private final Map<Integer, ExecutableStageContext> held = new HashMap<>();

  /** Each of the given makes the context of one stage on its worker. */
  SubtaskWorkers(List<Supplier<ExecutableStageContext>> workers) {
    this.workers = workers;
  }

  /** The context of one more stage, which opens in the thread of this name. */
  synchronized ExecutableStageContext context(String thread) {
    String subtask = subtask(thread);
    Place known = places.get(subtask);
    Place place = known == null ? new Place(withFewest()) : known;
    Supplier<ExecutableStageContext> contexts = workers.get(place.worker);
    held.computeIfAbsent(place.worker, any -> contexts.get());
    ExecutableStageContext context = contexts.get();
    places.put(subtask, place);
    place.stages++;
    return new ExecutableStageContext() {
      private final AtomicBoolean closed = new AtomicBoolean();

      @Override
      public StageBundleFactory getStageBundleFactory(ExecutableStage stage) {
        return context.getStageBundleFactory(stage);
      }

      @Override
      public void close() throws Exception {
        // Beam closes a batch's stage once more if that failed.
        if (closed.getAndSet(true)) {
          return;
        }
        List<ExecutableStageContext> all = new ArrayList<>(release(subtask));
        all.add(0, context);
        IOUtils.closeAll(all);
      }
    };
  }

  /** Its number where Flink tells it; else each thread is taken for a subtask of its own. */
  private static String subtask(String thread) {
    Matcher task = TASK.matcher(thread);
    return task.matches() ? task.group(1) : thread;
  }

  private int withFewest() {
    int[] subtasks = new int[workers.size()];
    places.values().forEach(place -> subtasks[place.worker]++);
    int found = 0;
    for (int worker = 1; worker < subtasks.length; worker++) {
      if (subtasks[worker] < subtasks[found]) {
        found = worker;
      }
    }
    return found;
  }

  /** Gives what is held no longer, to be closed without this lock: to stop a worker takes time. */
  private synchronized List<ExecutableStageContext> release(String subtask) {
    Place place = places.get(subtask);
    place.stages--;
    if (place.stages == 0) {
      places.remove(subtask);
    }
    if (!places.isEmpty()) {
      return List.of();
    }
    List<ExecutableStageContext> last = List.copyOf(held.values());
    held.clear();
    return last;
  }
}

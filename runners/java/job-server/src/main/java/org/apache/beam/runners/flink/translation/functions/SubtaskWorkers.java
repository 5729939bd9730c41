package org.apache.beam.runners.flink.translation.functions;

import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.beam.runners.fnexecution.control.ExecutableStageContext;
import org.apache.beam.runners.fnexecution.control.StageBundleFactory;
import org.apache.beam.sdk.util.construction.graph.ExecutableStage;

/**
 * The workers of one job in one TaskManager, each with the stages of its own subtasks.
 *
 * <p>A subtask that is new here goes to the worker that has the fewest, and stays there until its
 * last stage is closed: with as many subtasks as workers each worker has one, whichever of the
 * job's subtasks this TaskManager got.
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
  private final int[] subtasks;

  /** Each of the given makes the context of one stage on its worker. */
  SubtaskWorkers(List<Supplier<ExecutableStageContext>> workers) {
    this.workers = workers;
    this.subtasks = new int[workers.size()];
  }

  /** The context of one more stage, which opens in the thread of this name. */
  ExecutableStageContext context(String thread) {
    String subtask = subtask(thread);
    ExecutableStageContext context;
    int worker = take(subtask);
    try {
      context = workers.get(worker).get();
    } catch (Throwable failure) {
      release(subtask);
      throw failure;
    }
    return new ExecutableStageContext() {
      @Override
      public StageBundleFactory getStageBundleFactory(ExecutableStage stage) {
        return context.getStageBundleFactory(stage);
      }

      @Override
      public void close() throws Exception {
        release(subtask);
        context.close();
      }
    };
  }

  /** Its number where Flink tells it; else each thread is taken for a subtask of its own. */
  private static String subtask(String thread) {
    Matcher task = TASK.matcher(thread);
    return task.matches() ? task.group(1) : thread;
  }

  private synchronized int take(String subtask) {
    Place place = places.get(subtask);
    if (place == null) {
      int fewest = Arrays.stream(subtasks).min().getAsInt();
      int worker = 0;
      while (subtasks[worker] > fewest) {
        worker++;
      }
      place = new Place(worker);
      places.put(subtask, place);
      subtasks[worker]++;
    }
    place.stages++;
    return place.worker;
  }

  private synchronized void release(String subtask) {
    Place place = places.get(subtask);
    place.stages--;
    if (place.stages == 0) {
      places.remove(subtask);
      subtasks[place.worker]--;
    }
  }
}

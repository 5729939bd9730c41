package org.apache.beam.runners.flink.translation.functions;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;

import java.util.ArrayList;
import java.util.List;
import java.util.function.Supplier;
import org.apache.beam.runners.fnexecution.control.ExecutableStageContext;
import org.apache.beam.runners.fnexecution.control.StageBundleFactory;
import org.apache.beam.sdk.util.construction.graph.ExecutableStage;
import org.junit.Test;

/** Which worker gets the stages of which subtask. */
public class SubtaskWorkersTest {

  /** What each of two workers has open, by the order of opening. */
  private final List<Integer> opened = new ArrayList<>();

  private final List<Integer> closed = new ArrayList<>();
  private final SubtaskWorkers two = new SubtaskWorkers(List.of(worker(0), worker(1)));

  private Supplier<ExecutableStageContext> worker(int number) {
    return () -> {
      opened.add(number);
      return new ExecutableStageContext() {
        @Override
        public StageBundleFactory getStageBundleFactory(ExecutableStage stage) {
          throw new UnsupportedOperationException();
        }

        @Override
        public void close() {
          closed.add(number);
        }
      };
    };
  }

  private ExecutableStageContext open(String stage, int subtask, int of) {
    return two.context(stage + " (" + subtask + "/" + of + ")#0");
  }

  @Test
  public void allStagesOfASubtaskHaveOneWorkerWhateverTheirOrder() {
    open("write", 1, 2);
    open("read", 1, 2);
    open("read", 2, 2);
    open("group", 1, 2);
    open("write (again) #7", 2, 2);
    open("impulse", 1, 1);
    assertEquals(List.of(0, 0, 1, 0, 1, 0), opened);
  }

  @Test
  public void anySubtasksOfATaskManagerAreSpreadEvenly() {
    open("read", 2, 8);
    open("read", 4, 8);
    open("read", 6, 8);
    open("read", 8, 8);
    assertEquals(List.of(0, 1, 0, 1), opened);
  }

  @Test
  public void aSubtaskThatLeftMakesRoom() throws Exception {
    ExecutableStageContext read = open("read", 1, 4);
    ExecutableStageContext write = open("write", 1, 4);
    open("read", 2, 4);
    read.close();
    open("read", 1, 4); // still has a stage there
    open("read", 3, 4);
    write.close();
    assertEquals(List.of(0, 0), closed);
    assertEquals(List.of(0, 0, 1, 0, 0), opened);
    open("read", 4, 4);
    assertEquals(1, (int) opened.get(5));
  }

  @Test
  public void aSubtaskThatLeftWhollyHasNoPlaceAnyMore() throws Exception {
    ExecutableStageContext first = open("read", 1, 4);
    open("read", 2, 4);
    first.close();
    open("read", 3, 4);
    assertEquals(List.of(0, 1, 0), opened);
  }

  @Test
  public void aWorkerThatCannotStartTakesNoPlace() {
    List<Supplier<ExecutableStageContext>> workers =
        List.of(
            () -> {
              throw new IllegalStateException("no pool");
            },
            worker(1));
    SubtaskWorkers broken = new SubtaskWorkers(workers);
    assertThrows(IllegalStateException.class, () -> broken.context("read (1/2)#0"));
    assertThrows(IllegalStateException.class, () -> broken.context("read (2/2)#0"));
  }

  @Test
  public void aThreadThatIsNoTasksIsASubtaskOfItsOwn() {
    two.context("main");
    two.context("other");
    two.context("main");
    assertEquals(List.of(0, 1, 0), opened);
  }
}

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

  /** Which worker has made a context: the first of each is that which holds it. */
  private final List<Integer> made = new ArrayList<>();

  private final List<Integer> closed = new ArrayList<>();
  private final SubtaskWorkers two = new SubtaskWorkers(List.of(worker(0), worker(1)));

  private Supplier<ExecutableStageContext> worker(int number) {
    return () -> {
      made.add(number);
      return context(() -> closed.add(number));
    };
  }

  private static ExecutableStageContext context(Runnable close) {
    return new ExecutableStageContext() {
      @Override
      public StageBundleFactory getStageBundleFactory(ExecutableStage stage) {
        throw new UnsupportedOperationException();
      }

      @Override
      public void close() {
        close.run();
      }
    };
  }

  private ExecutableStageContext open(String stage, int subtask, int of) {
    return two.context(stage + " (" + subtask + "/" + of + ")#0");
  }

  /** The worker of one more stage. */
  private int workerOf(String stage, int subtask, int of) {
    open(stage, subtask, of);
    return made.get(made.size() - 1);
  }

  @Test
  public void allStagesOfASubtaskHaveOneWorkerWhateverTheirOrder() {
    assertEquals(0, workerOf("write", 1, 2));
    assertEquals(0, workerOf("read", 1, 2));
    assertEquals(1, workerOf("read", 2, 2));
    assertEquals(0, workerOf("group", 1, 2));
    assertEquals(1, workerOf("write (1/2)#0 again", 2, 2));
    assertEquals(0, workerOf("impulse", 1, 1));
  }

  @Test
  public void anySubtasksOfATaskManagerAreSpreadEvenly() {
    assertEquals(0, workerOf("read", 2, 8));
    assertEquals(1, workerOf("read", 4, 8));
    assertEquals(0, workerOf("read", 6, 8));
    assertEquals(1, workerOf("read", 8, 8));
  }

  @Test
  public void aSubtaskThatLeftMakesRoom() throws Exception {
    ExecutableStageContext read = open("read", 1, 4);
    ExecutableStageContext write = open("write", 1, 4);
    open("read", 2, 4);
    read.close();
    assertEquals(0, workerOf("read", 1, 4)); // still has a stage there
    assertEquals(0, workerOf("read", 3, 4));
    write.close();
    assertEquals(1, workerOf("read", 4, 4));
  }

  @Test
  public void aSubtaskThatLeftWhollyHasNoPlaceAnyMore() throws Exception {
    ExecutableStageContext first = open("read", 1, 4);
    open("read", 2, 4);
    first.close();
    assertEquals(0, workerOf("read", 3, 4));
  }

  @Test
  public void workersAreHeldUntilAllStagesAreClosed() throws Exception {
    ExecutableStageContext ahead = open("read", 1, 2);
    ExecutableStageContext behind = open("read", 2, 2);
    ahead.close();
    assertEquals(List.of(0), closed);
    open("write", 1, 2).close();
    assertEquals(List.of(0, 0, 1, 1, 0), made); // the worker is the one that was there
    behind.close();
    assertEquals(List.of(0, 0, 1, 0, 1), closed);
    open("read", 1, 2);
    assertEquals(List.of(0, 0), made.subList(5, 7)); // and after that it is another
  }

  @Test
  public void aStageThatIsClosedTwiceIsClosedOnce() throws Exception {
    ExecutableStageContext read = open("read", 1, 2);
    open("write", 1, 2);
    read.close();
    read.close();
    assertEquals(List.of(0), closed);
    assertEquals(1, workerOf("read", 2, 2)); // the first subtask still has its place
  }

  @Test
  public void whatFailsToCloseIsToldAndTheOthersAreClosed() {
    ExecutableStageContext broken =
        context(
            () -> {
              throw new IllegalStateException("broken");
            });
    List<ExecutableStageContext> next = new ArrayList<>(List.of(context(() -> closed.add(7)), broken));
    SubtaskWorkers one = new SubtaskWorkers(List.of(() -> next.remove(0)));
    ExecutableStageContext stage = one.context("read (1/1)#0");
    assertThrows(IllegalStateException.class, stage::close);
    assertEquals(List.of(7), closed);
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
    assertEquals(List.of(0, 0, 1, 1, 0), made);
  }
}

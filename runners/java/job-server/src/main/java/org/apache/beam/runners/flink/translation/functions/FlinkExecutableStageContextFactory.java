package org.apache.beam.runners.flink.translation.functions;

import static java.util.stream.Collectors.toList;

import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentMap;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.apache.beam.runners.fnexecution.control.DefaultExecutableStageContext;
import org.apache.beam.runners.fnexecution.control.ExecutableStageContext;
import org.apache.beam.runners.fnexecution.control.ReferenceCountingExecutableStageContextFactory;
import org.apache.beam.runners.fnexecution.provisioning.JobInfo;
import org.apache.beam.sdk.options.PortablePipelineOptions;
import org.apache.beam.sdk.util.construction.PipelineOptionsTranslation;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Struct;
import org.apache.beam.vendor.grpc.v1p69p0.com.google.protobuf.Value;
import org.apache.flink.api.java.ExecutionEnvironment;

/**
 * Gives the stages of one subtask to one worker process; it takes the place of Beam's class of this
 * name.
 *
 * <p>Beam's counts stages up as they open, from the threads of all subtasks, and takes workers in
 * turn. By the chance of their order one of two workers gets all stages that read, and the other
 * next to nothing to do.
 *
 * <p>Remove this source, {@link SubtaskWorkers} and the filter in pom.xml once Beam does the same.
 */
public class FlinkExecutableStageContextFactory implements ExecutableStageContext.Factory {

  private static final FlinkExecutableStageContextFactory INSTANCE =
      new FlinkExecutableStageContextFactory();

  // Operators take this class with them by serialization: all that come to a TaskManager share these.
  private static final ConcurrentMap<String, SubtaskWorkers> JOBS = new ConcurrentHashMap<>();

  private FlinkExecutableStageContextFactory() {}

  /** What Beam's operators ask for the context of each of their stages. */
  public static FlinkExecutableStageContextFactory getInstance() {
    return INSTANCE;
  }

  @Override
  public ExecutableStageContext get(JobInfo job) {
    return JOBS.computeIfAbsent(job.jobId(), id -> workers(job))
        .context(Thread.currentThread().getName());
  }

  private static SubtaskWorkers workers(JobInfo job) {
    PortablePipelineOptions options =
        PipelineOptionsTranslation.fromProto(job.pipelineOptions())
            .as(PortablePipelineOptions.class);
    // Balanced bundles go each to whichever of one factory's workers is free.
    boolean balanced = options.getLoadBalanceBundles();
    JobInfo each = balanced ? job : ofOneWorker(job);
    return new SubtaskWorkers(
        Stream.generate(FlinkExecutableStageContextFactory::counted)
            .limit(balanced ? 1 : count(options))
            .map(contexts -> (Supplier<ExecutableStageContext>) () -> contexts.get(each))
            .collect(toList()));
  }

  /** As Beam takes {@code --sdk_worker_parallelism}: 0 leaves Java one core. */
  static int count(PortablePipelineOptions options) {
    int given = options.getSdkWorkerParallelism();
    if (given < 0) {
      throw new IllegalArgumentException(
          "--sdk_worker_parallelism is " + given + ": give 0, for one less than cores, or more");
    }
    return given > 0 ? given : Math.max(Runtime.getRuntime().availableProcessors() - 1, 1);
  }

  /** All else of the options stays: workers are told them too, and Java does not know Python's. */
  static JobInfo ofOneWorker(JobInfo job) {
    Struct options =
        job.pipelineOptions().toBuilder()
            .putFields(
                "beam:option:sdk_worker_parallelism:v1",
                Value.newBuilder().setNumberValue(1).build())
            .build();
    return JobInfo.create(job.jobId(), job.jobName(), job.retrievalToken(), options);
  }

  private static ExecutableStageContext.Factory counted() {
    return ReferenceCountingExecutableStageContextFactory.create(
        DefaultExecutableStageContext::create,
        // A class loader that ends with the job can't end a worker later.
        caller -> caller.getClass().getClassLoader() != ExecutionEnvironment.class.getClassLoader());
  }
}
